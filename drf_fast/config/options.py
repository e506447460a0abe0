"""What every command can be told: one dataclass a command, the one source of its flags, of the
keys of a TOML file and of Python's keyword arguments. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Budget = Literal["fixed", "anytime"]
Format = Literal["table", "markdown", "latex", "csv", "json"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a classifier for randomized smoothing, then certify some test images.

    With no flag: SmoothAdv + DRF at sigma 0.5 on 10,000 embedded MNIST images, about two minutes
    on two CPU cores. Flags win over the TOML file, the file over the recipe, the recipe over the
    defaults.
    """

    recipe: str | None = None
    """Named hyperparameters of a published run: mnist- or cifar10- and gaussian, stability, macer,
    smoothmix[-drf], smoothadv[-drf], consistency[-drf]; cifar10-consistency-adv. Values depend on
    --sigma: the nearest of 0.25, 0.5 and 1 counts. Recipes follow the DRF paper; the published code
    it builds on is --split-batches --late-drop --no-nesterov."""
    config: Path | None = None
    """TOML file with any of these settings; the names are those of the flags."""

    data: str = "mnist-mini"
    """Data set: mnist-mini (embedded), mnist, fashion-mnist, cifar10; imagefolder (train/ and test/
    or val/ with a folder a class) or imagenet (the same, brought to 224 x 224), with --data-dir."""
    data_dir: Path | None = None
    """Folder of the data set; without it, a cache folder into which it is downloaded."""
    train_images: int | None = None
    """Use only the first so many training images; of class folders, as many evenly spaced ones."""
    augment: Literal["none", "crop-flip"] = "none"
    """Random crops (4 pixels of padding; of imagenet, a random part of the image) and flips."""
    arch: str = "lenet"
    """Network: lenet (28 x 28), resnet20, resnet56, resnet110, resnet50 (32 x 32 and larger), or
    one of your own: package.module:factory, called with num_classes=K, on the command line only."""
    normalize: str = "auto"
    """Normalising first layer, after the noise: none, cifar10, cifar10-center, imagenet or
    imagenet-center; auto takes that of the data set, none for mnist-like sets and imagefolder."""

    method: str = "smoothadv"
    """Training loss: gaussian, stability, macer, smoothmix, smoothadv or consistency."""
    drf: bool = True
    """Soft ball (DRF) instead of the hard one, for methods that have an adversary (of smoothmix,
    which has no ball, our own extension)."""
    sigma: float = 0.5
    """Standard deviation of the noise, in pixel units (images in [0, 1])."""
    num_samples: int = 2
    """Noisy copies m of each image."""
    steps: int = 4
    """Steps T of the adversary; 0 trains consistency without one (its Gaussian variant)."""
    epsilon: float = 1.0
    """L2 strength of the adversary in pixel units (the literature's 255 is 1.0 here)."""
    warmup_epochs: int = 0
    """Epochs over which epsilon, and the adversary's step with it, grows linearly to its value."""
    grad_norm: Literal["image", "batch", "none"] = "image"
    """Normalise the ascent by each image's gradient norm, the batch's mean norm, or not."""
    lambda0: float = 0.5
    """DRF: the price lambda of distance at the start."""
    lambda_lr: float = 0.02
    """DRF: learning rate zeta of lambda."""
    kappa: int = 100
    """DRF: number of adversarial examples whose mean distance steers lambda."""
    form: Literal["excess", "prox", "shrink"] = "excess"
    """DRF: how distance is priced (see drf_fast.SoftBall)."""
    lambda_every: int | Literal["epoch"] = "epoch"
    """DRF: change lambda once an 'epoch', or every so many training steps."""
    consistency_lam: float = 1.0
    """Consistency: weight of the KL term."""
    consistency_eta: float = 0.5
    """Consistency: weight of the entropy."""
    stability_lam: float = 2.0
    """Stability: weight of the stability term."""
    macer_lam: float = 12.0
    """MACER: weight lambda of the margin term."""
    macer_gamma: float = 8.0
    """MACER: margins above this are left alone."""
    macer_beta: float = 16.0
    """MACER: inverse temperature of the probabilities in the margin."""
    macer_after_drop: bool = False
    """MACER: switch the margin term on when the learning rate first drops (the MNIST recipe does,
    as published)."""
    mix_alpha: float = 1.0
    """SmoothMix: step size of the adversary in pixel units (L2); --steps counts the steps."""
    mix_eta: float = 5.0
    """SmoothMix: weight of the mixed images (published for MNIST: 5 with --steps 2, 4, 8 at sigma
    0.25, 0.5, 1, the recipe's choice; or 1 with --steps 3, 4, 8)."""
    mix_step: Literal[0, 1] = 0
    """SmoothMix: the near end of the line is the image (0) or the adversary after one step (1)."""
    mix_warmup: int = 0
    """SmoothMix: epochs over which --mix-eta, and the reach of that one step, grow linearly."""

    epochs: int = 6
    """Passes over the training images."""
    batch_size: int = 64
    """Clean images of a step; the network sees num_samples times as many rows."""
    split_batches: bool = False
    """Cut each batch into num_samples smaller ones with an optimiser step each, as published code
    does; recipes take the paper at its word and don't."""
    accumulate: int = 1
    """Compute a step's gradient in so many parts, to save memory: the same step up to rounding
    (batch normalisation alone sees the parts)."""
    lr: float = 0.05
    """Learning rate of SGD at the start."""
    lr_drops: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the epochs after which the learning rate is divided by 10."""
    late_drop: bool = False
    """Drop the learning rate one epoch later, as published code does; recipes don't."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum; the DRF paper names it, published code does without."""
    weight_decay: float = 1e-4
    """L2 penalty on the weights."""

    seed: int = 0
    """Seed of initialisation, order and noise."""
    precision: Precision = "fp32"
    """Arithmetic of the network: fp32, or bf16 (autocast)."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    memory_format: MemoryFormat = "auto"
    """Layout of the network's weights; auto measures which is faster."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads; they are recorded, and a resumed run takes what was recorded."""
    compile: bool = False
    """Run the network through torch.compile."""
    cuda_graph: bool = True
    """On a GPU, in one process and without --compile, run training steps as CUDA graphs."""

    certify_images: int = 100
    """Test images to certify after training, every k-th for the largest k; 0 skips it."""
    certify_n: int = 10_000
    """Noise samples of each certificate."""

    out: Path | None = None
    """Run folder; the default is runs/ and a name made of data, method, sigma and seed."""
    resume: bool = False
    """Continue the run in the run folder, if there is one: the same bits as without a break."""
    force: bool = False
    """Replace the run in the run folder."""
    save_every: int | None = None
    """Save every so many steps too, not only after each epoch."""
    max_steps: int | None = None
    """Stop after so many training steps (for trials)."""
    dry_run: bool = False
    """Print the resolved settings (as TOML) and the time they would take; write nothing."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class CertifyConfig:
    """Certify test images with CERTIFY (Cohen, Rosenfeld, Kolter 2019) and write a log.

    The log grows by one line per image; an interrupted run goes on with --resume.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint of a training run, or its run folder."""
    data: str | None = None
    """Data set; the default is that of the training run."""
    data_dir: Path | None = None
    """Folder of the data set; the default is that of the training run."""
    split: Literal["test", "train"] = "test"
    """Which images."""
    sigma: float | None = None
    """Noise level in pixel units; the default is that of the training run."""
    arch: str | None = None
    """Architecture of a checkpoint of another repository, where it does not say it itself, or the
    package.module:factory of a network of your own."""
    normalize: str | None = None
    """Its normalising first layer: none, cifar10, cifar10-center, imagenet or imagenet-center."""
    n0: int = 100
    """Samples that choose the class."""
    n: int = 100_000
    """Fresh samples that bound its probability."""
    alpha: float = 0.001
    """Probability that a certificate is wrong."""
    budget: Budget = "fixed"
    """How samples are spent: fixed takes n for each image, anytime stops when --radius or
    --tolerance is met, with the same guarantee."""
    radius: float | None = None
    """With --budget anytime: stop when it is decided whether the radius is at least this."""
    tolerance: float | None = None
    """With --budget anytime: stop when n samples would add less than this to the radius."""
    skip_wrong: bool = False
    """Spend no samples where the chosen class is wrong; certified accuracy stays as it is."""
    shard: str | None = None
    """Certify part i of k, written i/k, into a log of its own; report joins them."""
    plan: bool = False
    """Print what the run would cost and could show, and stop."""
    skip: int = 1
    """Certify every so many-th image."""
    max_images: int | None = None
    """Certify at most so many images."""
    batch_size: int | Literal["auto"] = "auto"
    """Rows of a forward pass; auto measures the fastest (with --shard: 256, on a GPU 2,048)."""
    precision: Precision = "fp32"
    """Arithmetic of the network; the certificate is of that very network."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    memory_format: MemoryFormat = "auto"
    """Layout of the network's weights; auto measures which is faster."""
    compile: bool = False
    """Run the network through torch.compile."""
    seed: int = 0
    """Names the noise of all certificates."""
    out: Path | None = None
    """Log file; the default lies beside the checkpoint and names sigma and n."""
    resume: bool = False
    """Continue the log, if there is one."""
    force: bool = False
    """Replace the log."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Classify test images with PREDICT (Cohen, Rosenfeld, Kolter 2019), one line each on stdout.

    The class of the smoothed classifier, wrong with probability alpha at most, or -1: abstains.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint of a training run, or its run folder."""
    data: str | None = None
    """Data set; the default is that of the training run."""
    data_dir: Path | None = None
    """Folder of the data set; the default is that of the training run."""
    split: Literal["test", "train"] = "test"
    """Which images."""
    sigma: float | None = None
    """Noise level in pixel units; the default is that of the training run."""
    arch: str | None = None
    """Architecture of a checkpoint of another repository, where it does not say it itself, or the
    package.module:factory of a network of your own."""
    normalize: str | None = None
    """Its normalising first layer: none, cifar10, cifar10-center, imagenet or imagenet-center."""
    n: int = 1000
    """Samples of each image."""
    alpha: float = 0.001
    """Probability that a class is wrong."""
    skip: int = 1
    """Classify every so many-th image."""
    max_images: int | None = None
    """Classify at most so many images."""
    batch_size: int | Literal["auto"] = "auto"
    """Rows of a forward pass; auto measures the fastest."""
    precision: Precision = "fp32"
    """Arithmetic of the network."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    memory_format: MemoryFormat = "auto"
    """Layout of the network's weights; auto measures which is faster."""
    compile: bool = False
    """Run the network through torch.compile."""
    seed: int = 0
    """Names the noise."""
    out: Path | None = None
    """Write the lines into this file instead."""
    force: bool = False
    """Replace the file."""
    json: bool = False
    """Print the totals as JSON; the lines then need --out."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """ACR and certified accuracy of certification logs, ours and published ones.

    Logs of one method and sigma are training seeds and are averaged; shards of one run are joined
    first. For example: drf-fast report gaussian_*.tsv smoothadv_*.tsv --compare --plot curve.png
    """

    logs: tyro.conf.Positional[tuple[Path, ...]]
    """Log files; ours keep their settings in the .json beside them, and shards are joined."""
    format: Format = "table"
    """Output on stdout; json and csv hold everything that --details shows."""
    details: bool = False
    """Also show 95 % bounds of certified accuracy over images, the largest possible radius and who
    reaches it, and quantiles of p_lower."""
    compare: bool = False
    """Also show the difference of each method to the first, paired by images, with a 95 % bootstrap
    interval over images and seeds."""
    plot: Path | None = None
    """Draw certified accuracy against radius into this PNG, PDF or SVG file."""
    plot_p: Path | None = None
    """Draw the distribution of p_lower (ECDF) into this file: the ACR rewards easy images, this
    shows the hard ones too."""
    paper: bool = True
    """Show the row of Table 1 of the DRF paper beside ours where it has one."""
    table1: bool = False
    """Lay the report out as Table 1 of the DRF paper, ours beside the paper's and the difference;
    tables do so by themselves where all logs have a row there and were made as the paper's."""
    force: bool = False
    """Replace the plot files."""


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Train and certify a grid of settings, and draw what they do to the certified radius.

    Any flag of 'drf-fast train' holds for all runs. For example the paper's Fig. 3:
    drf-fast sweep --recipe mnist-smoothadv-drf --vary lambda0=0.5,1,2 --seeds 0,1,2 --sigma 1
    Each run has a sub-folder of its own; an interrupted sweep goes on with --resume.
    """

    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A flag of train and its values: lambda0=0.5,1,2. Given again, all combinations are run."""
    seeds: str | None = None
    """Training seeds of each setting, averaged: 0,1,2; the default is train's --seed alone."""
    n: int | None = None
    """Samples that bound the probability of the class; the default is 10,000."""
    n0: int | None = None
    """Samples that choose the class; the default is 100."""
    alpha: float | None = None
    """Probability that a certificate is wrong; the default is 0.001."""
    certify_images: int | None = None
    """Test images to certify of each run, every k-th for the largest k; the default is 100."""
    skip: int | None = None
    """Certify every so many-th test image instead; 1 takes all."""
    out: Path | None = None
    """Folder of the sweep; the default is runs/ and a name made of the data, method and grid."""
    plan: Annotated[bool, tyro.conf.arg(aliases=("--dry-run",))] = False
    """List the runs and the time they would take, and stop."""
    resume: bool = False
    """Continue the sweep in the folder; without other flags with the settings it has. More values
    or seeds extend it."""
    force: bool = False
    """Replace the sweep in the folder."""
    json: bool = False
    """Print the summary as JSON."""


@dataclasses.dataclass(frozen=True)
class GapConfig:
    """The confidence gap of networks under noise: histogram, density and quantiles.

    log F^y(x + delta) - max_{c != y} log F^c(x + delta), over test images classified right (Fig. 2
    of the DRF paper). For example: drf-fast gap runs/smoothadv runs/smoothadv-drf --plot gap.png
    """

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """Checkpoints or run folders, one curve each; those of one method and sigma are seeds."""
    data: str | None = None
    """Data set; the default is that of the training run."""
    data_dir: Path | None = None
    """Folder of the data set; the default is that of the training run."""
    split: Literal["test", "train"] = "test"
    """Which images."""
    sigma: float | None = None
    """Noise level in pixel units; the default is that of each training run."""
    arch: str | None = None
    """Architecture of checkpoints of another repository, where they do not say it themselves."""
    normalize: str | None = None
    """Their normalising first layer: none, cifar10, cifar10-center, imagenet or imagenet-center."""
    num_samples: int = 1
    """Noisy copies of each image."""
    over: Literal["copy", "vote", "all"] = "copy"
    """Gaps of which copies: those classified right themselves, all copies of images that the
    majority of copies gets right, or all."""
    skip: int = 1
    """Take every so many-th image."""
    max_images: int | None = None
    """Take at most so many images."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    seed: int = 0
    """Names the noise."""
    plot: Path | None = None
    """Draw histogram and density into this PNG, PDF or SVG file."""
    force: bool = False
    """Replace the plot file."""
    json: bool = False
    """Print the numbers as JSON."""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """What this installation can do, what is missing, and how to get it."""

    json: bool = False
    """Print as JSON."""

    self_test: bool = False
    """Run every operation on the devices at hand and compare it with the reference."""
