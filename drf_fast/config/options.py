"""The settings of every command: one dataclass per command, the one source of its flags and of
Python's keyword arguments; TrainConfig also of the keys of a TOML file, which only train reads (and
sweep, for its runs). Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from drf_fast.config import reading
from drf_fast.config.choices import (
    AskedArithmetic,
    Augment,
    Budget,
    Device,
    GradNorm,
    MemoryFormat,
    Precision,
    Split,
)
from drf_fast.config.tags import Of, Range, Role, Section, Tag


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a classifier for randomized smoothing, then certify some test images.

    Without flags: SmoothAdv + DRF at sigma 0.5 on 10,000 embedded MNIST images, one to four minutes
    on two CPU cores. Flags override the TOML file, the file overrides the recipe, and the recipe
    overrides the defaults. For example:
      drf-fast train --recipe mnist-smoothadv-drf --sigma 0.5 --dry-run
      drf-fast train --recipe cifar10-smoothadv-drf --data imagefolder --data-dir FOLDER
    """

    recipe: Annotated[str | None, Role.SOURCE] = None
    """Hyperparameters of a published run: mnist- or cifar10- followed by gaussian, stability,
    macer, smoothmix[-drf], smoothadv[-drf], consistency[-drf] or catrs[-drf]; also
    cifar10-consistency-adv (this, smoothmix-drf, catrs-drf and cifar10-consistency-drf are our own
    extensions). Values are those for the sigma of 0.25, 0.5 and 1 nearest to --sigma.
    Recipes follow the DRF paper; to follow the published code on which it builds, add
    --split-batches --late-drop --no-nesterov."""
    config: Annotated[Path | None, Role.SOURCE, Tag.ONE_PER_SWEEP] = None
    """TOML file with any of these settings, named like the flags."""

    data: Annotated[str, Role.RESULT, Section.DATA, Tag.ONE_PER_SWEEP] = "mnist-mini"
    """Data set: mnist-mini (embedded), mnist, fashion-mnist, cifar10, cifar100, svhn; or, with
    --data-dir, imagefolder (train/ and test/ or val/ with one folder per class), imagenet (the
    same, scaled to a shorter side of 256, centre 224 x 224) or npz (arrays in a file)."""
    data_dir: Annotated[Path | None, Role.PLACE, Section.DATA, Tag.ONE_PER_SWEEP] = None
    """Folder of the data set, or FILE.npz; the default is a cache folder into which it is
    downloaded."""
    train_images: Annotated[int | None, Role.RESULT, Section.DATA, Range.COUNT] = None
    """Use only this many training images: the first ones, or evenly spaced ones of class folders;
    the default is all."""
    augment: Annotated[Augment, Role.RESULT, Section.DATA] = "none"
    """Random crops (4 pixels of padding; for imagenet, a random part of the image) and flips."""
    arch: Annotated[str, Role.RESULT, Section.DATA] = "lenet"
    """Network: lenet (28 x 28), resnet20, resnet56, resnet110 (8 x 8 and larger), resnet50 (3
    channels, 32 x 32 and larger), or one of your own: package.module:factory, called with
    num_classes=K, on the command line only."""
    init: Annotated[Path | None, Role.RESULT, Section.DATA, Tag.SAME_COST] = None
    """Start from the weights in this run folder or checkpoint, ours or another program's
    (fine-tuning). The network must be the same; a last layer for another number of classes starts
    at random."""
    normalize: Annotated[str, Role.RESULT, Section.DATA] = "auto"
    """Normalising first layer, after the noise: none, cifar10, cifar10-center, imagenet,
    imagenet-center, mnist, or MEAN/STD in numbers (0.5/0.25, or one a channel:
    0.5,0.4,0.3/0.25,0.25,0.2); auto takes that of cifar10 or imagenet, and none for other data sets
    and for a network of your own (--arch MODULE:FUNCTION)."""

    method: Annotated[str, Role.RESULT] = "smoothadv"
    """Training loss: gaussian, stability, macer, smoothmix, smoothadv, consistency or catrs."""
    drf: Annotated[bool, Role.RESULT, Tag.ADVERSARY] = True
    """Use the soft ball (DRF) instead of the hard ball, if the method has an adversary. For
    smoothmix, which has no ball, and for catrs this is our own extension."""
    sigma: Annotated[float, Role.RESULT, Tag.SAME_COST] = 0.5
    """Standard deviation of the noise, in pixel units (images in [0, 1])."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 2
    """Noisy copies m of each image."""
    steps: Annotated[int, Role.RESULT, Tag.ADVERSARY, Range.FROM_ZERO] = 4
    """Steps T of the adversary; 0 trains consistency or catrs without an adversary."""
    epsilon: Annotated[float, Role.RESULT, Tag.ADVERSARY, Tag.SAME_COST, Range.ABOVE_ZERO] = 1.0
    """L2 strength of the adversary in pixel units. Published programs divide theirs by 256: their
    255 is 0.996 here, their 512 is 2."""
    warmup_epochs: Annotated[int, Role.RESULT, Tag.ADVERSARY, Tag.SAME_COST, Range.FROM_ZERO] = 0
    """Epochs over which epsilon and the adversary's step size grow linearly to their values."""
    grad_norm: Annotated[GradNorm, Role.RESULT, Tag.ADVERSARY] = "image"
    """Divide the adversary's gradient by each image's norm, by the batch's mean norm, or not."""
    lambda0: Annotated[float, Role.RESULT, Tag.SOFT_BALL, Tag.SAME_COST, Range.FROM_ZERO] = (
        reading.LAMBDA0
    )
    """DRF: initial value of lambda, the price of distance."""
    lambda_lr: Annotated[float, Role.RESULT, Tag.SOFT_BALL, Tag.SAME_COST, Range.ABOVE_ZERO] = 0.02
    """DRF: learning rate zeta of lambda."""
    kappa: Annotated[int, Role.RESULT, Tag.SOFT_BALL, Tag.SAME_COST, Range.COUNT] = 100
    """DRF: number of adversarial examples whose mean distance steers lambda."""
    form: Annotated[reading.Form, Role.RESULT, Tag.SOFT_BALL] = reading.FORM
    """DRF: what lambda does to a perturbation. prox: the proximal step of lambda times its length;
    shrink: all of it times 1 - lambda; excess: only what is beyond epsilon; udr: excess without a
    cap on lambda, scaled by --tau."""
    lambda_every: Annotated[int | Literal["epoch"], Role.RESULT, Tag.SOFT_BALL, Range.COUNT] = (
        reading.LAMBDA_EVERY
    )
    """DRF: number of training steps between changes of lambda, or 'epoch' for once per epoch."""
    tau: Annotated[float | None, Role.RESULT, Tag.SOFT_BALL, Tag.SAME_COST, Range.ABOVE_ZERO] = None
    """DRF: the scale of --form udr, in pixel units; the default is the adversary's step size."""
    consistency_lam: Annotated[
        float, Role.RESULT, Of("consistency"), Tag.SAME_COST, Range.FROM_ZERO
    ] = 1.0
    """Consistency: weight of the KL term."""
    consistency_eta: Annotated[
        float, Role.RESULT, Of("consistency"), Tag.SAME_COST, Range.FROM_ZERO
    ] = 0.5
    """Consistency: weight of the entropy."""
    stability_lam: Annotated[
        float, Role.RESULT, Of("stability"), Tag.SAME_COST, Range.FROM_ZERO
    ] = 2.0
    """Stability: weight of the stability term."""
    macer_lam: Annotated[float, Role.RESULT, Of("macer"), Tag.SAME_COST, Range.FROM_ZERO] = 12.0
    """MACER: weight lambda of the margin term."""
    macer_gamma: Annotated[float, Role.RESULT, Of("macer"), Tag.SAME_COST, Range.ABOVE_ZERO] = 8.0
    """MACER: margins above this value are not increased further."""
    macer_beta: Annotated[float, Role.RESULT, Of("macer"), Tag.SAME_COST, Range.ABOVE_ZERO] = 16.0
    """MACER: inverse temperature of the probabilities in the margin."""
    macer_after_drop: Annotated[bool, Role.RESULT, Of("macer"), Tag.SAME_COST] = False
    """MACER: switch the margin term on when the learning rate first drops (as published, and in
    the MNIST recipe)."""
    mix_alpha: Annotated[float, Role.RESULT, Of("smoothmix"), Tag.SAME_COST, Range.ABOVE_ZERO] = 1.0
    """SmoothMix: step size of the adversary in pixel units (L2); --steps counts the steps."""
    mix_eta: Annotated[float, Role.RESULT, Of("smoothmix"), Tag.SAME_COST, Range.FROM_ZERO] = 5.0
    """SmoothMix: weight of the mixed images (published for MNIST: 5 with --steps 2, 4, 8 at sigma
    0.25, 0.5, 1, the recipe's choice; or 1 with --steps 3, 4, 8)."""
    mix_step: Annotated[Literal[0, 1], Role.RESULT, Of("smoothmix")] = 0
    """SmoothMix: mix from the image (0), or from the adversarial image after one step (1)."""
    mix_warmup: Annotated[int, Role.RESULT, Of("smoothmix"), Tag.SAME_COST, Range.FROM_ZERO] = 0
    """SmoothMix: epochs over which --mix-eta and the size of that one step grow linearly."""
    catrs_lam: Annotated[float, Role.RESULT, Of("catrs"), Tag.SAME_COST, Range.FROM_ZERO] = 1.0
    """CAT-RS: weight lambda of the worst-case noise term."""
    catrs_teacher: Annotated[Path | None, Role.RESULT, Of("catrs"), Tag.SAME_COST] = None
    """CAT-RS: run folder of the teacher, whose smoothed prediction is the target (published:
    gaussian at sigma 0.25); required by catrs."""
    catrs_n: Annotated[int, Role.RESULT, Of("catrs"), Tag.SAME_COST, Range.COUNT] = 100
    """CAT-RS: votes of the teacher on each training image, counted once before training."""

    epochs: Annotated[int, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST, Range.COUNT] = 6
    """Passes over the training images."""
    batch_size: Annotated[int, Role.RESULT, Section.OPTIMISER, Range.COUNT] = 64
    """Clean images per step; the network sees num_samples times as many rows."""
    split_batches: Annotated[bool, Role.RESULT, Section.OPTIMISER] = False
    """Split each batch into num_samples smaller ones with one optimiser step each, as published
    code does; recipes follow the paper's text and do not."""
    accumulate: Annotated[int, Role.SPEED, Section.OPTIMISER, Tag.ONE_PER_SWEEP, Range.COUNT] = 1
    """Compute a step's gradient in this many parts, to save memory. The step is the same up to
    rounding, except that batch normalisation sees each part alone."""
    lr: Annotated[float, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST, Range.ABOVE_ZERO] = 0.05
    """Initial learning rate of SGD."""
    lr_drops: Annotated[tuple[float, ...], Role.RESULT, Section.OPTIMISER, Tag.SAME_COST] = (
        0.6,
        0.8,
    )
    """Fractions of the epochs after which the learning rate is divided by 10."""
    late_drop: Annotated[bool, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST] = False
    """Drop the learning rate one epoch later, as published code does; recipes do not."""
    momentum: Annotated[float, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST, Range.FROM_ZERO] = 0.9
    """Momentum of SGD."""
    nesterov: Annotated[bool, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST] = True
    """Use Nesterov momentum, as the DRF paper says; published code does not."""
    weight_decay: Annotated[
        float, Role.RESULT, Section.OPTIMISER, Tag.SAME_COST, Range.FROM_ZERO
    ] = 1e-4
    """L2 penalty on the weights."""

    seed: Annotated[int, Role.RESULT, Tag.SAME_COST, Tag.ONE_PER_SWEEP] = 0
    """Seed of initialisation, image order and noise."""
    precision: Annotated[Precision, Role.RESULT, Section.COMPUTATION] = "fp32"
    """Arithmetic of the network: fp32, or bf16 (autocast)."""
    device: Annotated[Device, Role.SPEED, Tag.ONE_PER_SWEEP] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    memory_format: Annotated[MemoryFormat, Role.SPEED, Tag.MEASURED, Tag.ONE_PER_SWEEP] = "auto"
    """Layout of the network's weights; auto measures which is faster."""
    threads: Annotated[
        int | Literal["auto"], Role.SPEED, Tag.MEASURED, Tag.ONE_PER_SWEEP, Range.COUNT
    ] = "auto"
    """CPU threads; the number is recorded, and a resumed run uses the recorded number."""
    compile: Annotated[bool, Role.RESULT, Section.COMPUTATION] = False
    """Run the network through torch.compile."""
    cuda_graph: Annotated[bool, Role.SPEED, Tag.RESUMES, Tag.ONE_PER_SWEEP] = True
    """On a GPU, in one process and without --compile, run training steps as CUDA graphs."""

    certify_images: Annotated[int, Role.CERTIFICATES, Tag.ONE_PER_SWEEP, Range.FROM_ZERO] = 100
    """Number of test images to certify after training, evenly spaced; 0 certifies none."""
    certify_n: Annotated[int, Role.CERTIFICATES, Tag.ONE_PER_SWEEP, Range.COUNT] = 10_000
    """Noise samples of each certificate."""

    out: Annotated[Path | None, Role.PLACE, Tag.ONE_PER_SWEEP] = None
    """Run folder; the default is runs/ and a name made of data, method, sigma and seed."""
    resume: Annotated[bool, Role.CALL, Tag.ONE_PER_SWEEP] = False
    """Continue the run in the run folder, if there is one; on a CPU it ends with the same bits as
    an uninterrupted run."""
    force: Annotated[bool, Role.CALL, Tag.ONE_PER_SWEEP] = False
    """Replace the run in the run folder."""
    save_every: Annotated[int | None, Role.LIMIT, Tag.ONE_PER_SWEEP, Range.COUNT] = None
    """Number of steps between additional saves; by default a run is saved only after each epoch."""
    max_steps: Annotated[int | None, Role.LIMIT, Tag.RENEWED, Tag.ONE_PER_SWEEP, Range.COUNT] = None
    """Stop after this many training steps, for trials; the default is no limit."""
    timeout: Annotated[float | str, Role.LIMIT, Tag.RENEWED, Tag.ONE_PER_SWEEP] = "10min"
    """With several processes: how long to wait for the others, in seconds or with a unit (s, min,
    h, d), before the run ends and names those that did not answer."""
    dry_run: Annotated[bool, Role.CALL, Tag.ONE_PER_SWEEP] = False
    """Print the resolved settings (as TOML) and the estimated time; write nothing."""
    json: Annotated[bool, Role.CALL, Tag.ONE_PER_SWEEP] = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings shared by all commands that apply a trained network to images of a data set."""

    data: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Data set; the default is that of the training run."""
    data_dir: Annotated[Path | None, Role.PLACE, Section.DATA] = None
    """Folder of the data set, or FILE.npz; the default is that of the training run."""
    split: Annotated[Split, Role.RESULT, Section.DATA] = "test"
    """Part of the data set to take images from."""
    sigma: Annotated[float | None, Role.RESULT] = None
    """Noise level in pixel units; the default is that of the training run."""
    arch: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Architecture of another program's checkpoint, if the file does not record it; or your own
    network as package.module:factory, called with num_classes=K: with a checkpoint of any program,
    or without one if the factory loads the weights."""
    normalize: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Normalising first layer before such a network: none, cifar10, cifar10-center, imagenet,
    imagenet-center, mnist, or MEAN/STD in numbers (0.5/0.25, or one a channel); the
    default is what the file records."""
    skip: Annotated[int, Role.RESULT, Section.DATA, Range.COUNT] = 1
    """Take every K-th image, starting with the first."""
    max_images: Annotated[int | None, Role.RESULT, Section.DATA, Range.COUNT] = None
    """Take at most this many images; the default is all."""
    device: Annotated[Device, Role.SPEED] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    threads: Annotated[int | Literal["auto"], Role.SPEED, Range.COUNT] = "auto"
    """CPU threads; auto takes torch's number; a log that is continued keeps its own."""
    seed: Annotated[int, Role.RESULT] = 0
    """Seed of the noise."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the output file."""
    json: Annotated[bool, Role.CALL] = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothedConfig(NetworkConfig):
    """Settings of all commands that smooth one network, certify for example."""

    checkpoint: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]"), Role.SOURCE
    ] = None
    """Run folder or checkpoint, ours or another program's; not needed if --arch
    package.module:factory makes a network with its weights."""
    n: Annotated[int, Role.RESULT, Range.COUNT]
    """Noise samples per image."""
    alpha: Annotated[float, Role.RESULT] = 0.001
    """Highest probability, for each image, that an answer is wrong."""
    sound: Annotated[bool, Role.RESULT] = False
    """Draw noise in whole levels of 8-bit images, so that answers also hold in floating point, for
    the program as it runs (docs/certification.md)."""
    batch_size: Annotated[int | Literal["auto"], Role.SPEED, Tag.MEASURED, Range.COUNT] = "auto"
    """Rows per forward pass; auto measures the fastest."""
    precision: Annotated[AskedArithmetic, Role.RESULT, Section.COMPUTATION, Tag.MEASURED] = "auto"
    """Arithmetic of the network; auto takes fp32 or, on a GPU, the faster of fp32 and tf32; fastest
    also tries bf16."""
    memory_format: Annotated[MemoryFormat, Role.SPEED, Tag.MEASURED] = "auto"
    """Layout of the network's weights; auto measures which is faster."""
    compile: Annotated[bool, Role.RESULT, Section.COMPUTATION] = False
    """Run the network through torch.compile."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Output file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertifyConfig(SmoothedConfig):
    """Certify test images with CERTIFY (Cohen, Rosenfeld, Kolter 2019) and write a log.

    The log has one line per image; --resume continues an interrupted run. For example:
      drf-fast certify runs/RUN --n 100000 --skip 20 --plan
    """

    n0: Annotated[int, Role.RESULT, Range.COUNT] = 100
    """Noise samples that choose the class."""
    n: Annotated[int, Role.RESULT, Range.COUNT] = 100_000
    """Fresh noise samples that bound the probability of the chosen class."""
    alpha: Annotated[float, Role.RESULT] = 0.001
    """Highest probability, for each image, that its certificate is wrong."""
    budget: Annotated[Budget, Role.RESULT] = "fixed"
    """How samples are spent: fixed takes n for each image, anytime stops when --radius or
    --tolerance is met, with the same guarantee."""
    radius: Annotated[float | None, Role.RESULT] = None
    """With --budget anytime: stop when it is decided whether the radius is at least this."""
    tolerance: Annotated[float | None, Role.RESULT] = None
    """With --budget anytime: stop when n samples would add less than this to the radius."""
    skip_wrong: Annotated[bool, Role.RESULT] = False
    """Spend no samples if the chosen class is wrong; certified accuracy does not change."""
    shard: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Certify part i of k, written i/k, into its own log; report joins the logs."""
    timeout: Annotated[float | str, Role.CALL] = "10min"
    """With several processes: how long to wait for a sign of life from the others, in seconds or
    with a unit (s, min, h, d), before the run ends and names those that gave none."""
    plan: Annotated[bool, Role.CALL] = False
    """Print the cost of the run and the largest radius that it can prove, and stop."""
    batch_size: Annotated[int | Literal["auto"], Role.SPEED, Tag.MEASURED, Range.COUNT] = "auto"
    """Rows per forward pass; auto measures the fastest (with --shard: 256, on a GPU 2,048)."""
    precision: Annotated[AskedArithmetic, Role.RESULT, Section.COMPUTATION, Tag.MEASURED] = "auto"
    """Arithmetic of the network, and so of the certificates; auto takes fp32 or, on a GPU, the
    faster of fp32 and tf32; fastest also tries bf16 (with --shard both mean fp32)."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Log file; the default is beside the checkpoint, with sigma and n in its name, after the name
    of a checkpoint that is not called checkpoint.pt."""
    resume: Annotated[bool, Role.CALL] = False
    """Continue the log, if there is one."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(SmoothedConfig):
    """Classify test images with PREDICT (Cohen, Rosenfeld, Kolter 2019), one line each on stdout.

    The class of the smoothed classifier, wrong with probability at most alpha, or -1 if it
    abstains. For example:
      drf-fast predict runs/RUN --max-images 20
    """

    n: Annotated[int, Role.RESULT, Range.COUNT] = 1000
    """Noise samples per image."""
    alpha: Annotated[float, Role.RESULT] = 0.001
    """Highest probability, for each image, that its class is wrong."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Write the lines to this file instead of stdout."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the file."""
    json: Annotated[bool, Role.CALL] = False
    """Print the totals as JSON; needs --out for the lines."""


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Train and certify a grid of settings, and draw their effect on the certified radius.

    Any flag of 'drf-fast train' applies to all runs. Each run has its own sub-folder; --resume
    continues an interrupted sweep. For example the paper's Fig. 3:
      drf-fast sweep --recipe mnist-smoothadv-drf --vary lambda0=0.5,1,2 --seeds 0,1,2 --sigma 1 \\
        --form excess --lambda-every epoch
    """

    vary: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], Role.RESULT] = ()
    """A flag of train and its values: lambda0=0.5,1,2. Repeat it to run all combinations. A value
    with commas is a JSON string: 'normalize="0.5,0.4,0.3/0.25"'."""
    seeds: Annotated[str | None, Role.RESULT] = None
    """Training seeds of each setting, averaged: 0,1,2; the default is train's --seed alone."""
    n: Annotated[int | None, Role.RESULT, Range.COUNT] = None
    """Noise samples that bound the probability of the class; the default is 10,000."""
    n0: Annotated[int | None, Role.RESULT, Range.COUNT] = None
    """Noise samples that choose the class; the default is 100."""
    alpha: Annotated[float | None, Role.RESULT] = None
    """Highest probability, for each image, that its certificate is wrong; the default is 0.001."""
    certify_images: Annotated[int | None, Role.CERTIFICATES, Section.DATA, Range.COUNT] = None
    """Number of test images to certify for each run, evenly spaced; the default is 100."""
    skip: Annotated[int | None, Role.RESULT, Section.DATA, Range.COUNT] = None
    """Certify every K-th test image instead; 1 takes all."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Folder of the sweep; the default is runs/ and a name made of the data, method and grid."""
    plan: Annotated[bool, tyro.conf.arg(aliases=("--dry-run",)), Role.CALL] = False
    """List the runs and their estimated time, and stop; write and download nothing."""
    resume: Annotated[bool, Role.CALL] = False
    """Continue the sweep in the folder, with its own settings if no other flags are given. Values
    and seeds are added to its own; another set of names in --vary replaces its grid."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the sweep in the folder."""
    json: Annotated[bool, Role.CALL] = False
    """Print the summary as JSON."""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Show what this installation can do, what is missing, and how to get it."""

    json: Annotated[bool, Role.CALL] = False
    """Print as JSON."""
    self_test: Annotated[bool, Role.CALL] = False
    """Run every operation on every device of this machine and compare it with the reference."""
