"""The settings of the commands that look at what was certified: attack, gap, show, report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from drf_fast.config.options import Device, Format, NetworkConfig, SmoothedConfig
from drf_fast.config.tags import Range, Role
from drf_fast.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig(SmoothedConfig):
    """Attack the smoothed classifier as Salman et al. (2019) do, and check its certificates.

    PGD on the smoothed loss, with restarts, and DDN look for the worst image within each epsilon;
    PREDICT, on noise that the attack has not seen, says what has become of its class. A log of one
    line an image and epsilon; an interrupted run goes on with --resume. The exit status is 1 too
    where an image changes its class inside its certified radius. For example:
      drf-fast attack runs/RUN --epsilons 0.25,0.5,1 --max-images 100
    """

    n: Annotated[int, Role.RESULT, Range.COUNT] = 1000
    """Samples with which PREDICT judges an image."""
    alpha: Annotated[float, Role.RESULT] = 0.001
    """Probability that such a judgement is wrong."""
    epsilons: Annotated[str | None, Role.RESULT] = None
    """L2 strengths in pixel units, 0.25,0.5,1 for example; the default is sigma, 2 and 3 sigma."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 32
    """Noisy copies m of an image in each gradient; published attacks take up to 128."""
    steps: Annotated[int, Role.RESULT, Range.COUNT] = 20
    """Steps T of PGD, each of size 2 epsilon / T; published attacks take up to 100."""
    restarts: Annotated[int, Role.RESULT, Range.COUNT] = 2
    """How often PGD runs: first from the image, then from random places in the ball."""
    ddn_steps: Annotated[int, Role.RESULT, Range.FROM_ZERO] = 40
    """Steps of the second attack, DDN (Rony et al. 2019); 0 leaves it out."""
    certificates: Annotated[Path | None, Role.SOURCE] = None
    """Certification log to compare with; the default is the one with most images in the
    run folder that is of this network and sigma."""
    skip: Annotated[int | None, Role.RESULT, Range.COUNT] = None  # type: ignore[assignment]
    """Take every K-th image, from the first on; the default is that of the certificates."""
    max_images: Annotated[int | None, Role.RESULT, Range.COUNT] = 20
    """Take at most so many images; None takes all."""
    shard: Annotated[str | None, Role.RESULT] = None
    """Attack part i of k, written i/k, into a log of its own; report takes all of them."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Log file; the default lies beside the checkpoint and names sigma, n and a checkpoint that is
    not called checkpoint.pt."""
    resume: Annotated[bool, Role.CALL] = False
    """Continue the log, if there is one."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapConfig(NetworkConfig):
    """Measure the confidence gap of networks under noise: quantiles, histogram and density.

    log F^y(x + delta) - max_{c != y} log F^c(x + delta), over test images classified right (Fig. 2
    of the DRF paper). For example:
      drf-fast gap runs/smoothadv runs/smoothadv-drf --plot gap.png
    """

    checkpoints: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN...]"), Role.SOURCE
    ] = ()
    """Checkpoints or run folders, one curve each; those of one method and sigma are seeds; not
    needed where --arch package.module:factory makes a network with its weights."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 1
    """Noisy copies of each image."""
    over: Annotated[Literal["copy", "vote", "all"], Role.RESULT] = "copy"
    """Gaps of which copies: those classified right themselves, all copies of images that the
    majority of copies gets right, or all."""
    plot: Annotated[Path | None, Role.PLACE] = None
    """Draw histogram and density into this PNG, PDF or SVG file."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the plot file."""
    json: Annotated[bool, Role.CALL] = False
    """Print the numbers as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw test images as the smoothed classifier sees them, or under several levels of noise.

    Of each image: itself, a noisy copy, the adversarial image, their difference, the votes for the
    classes and the certificate. For example:
      drf-fast show runs/RUN --sort radius --images 12 --out images.pdf
      drf-fast show --noise cifar10 --sigma 0.25,0.5,1
    """

    run: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]"), Role.SOURCE
    ] = None
    """Run folder, or a checkpoint with its certificates beside it; not needed where --arch
    package.module:factory makes a network with its weights."""
    noise: Annotated[str | None, Role.RESULT] = None
    """Instead of a run: a data set, whose images are shown at each of --sigma."""
    sigma: Annotated[str | None, Role.RESULT] = None
    """Noise level in pixel units, with --noise several, 0.25,0.5,1 for example (the default there);
    of a run the default is that of its training."""
    images: Annotated[int, Role.RESULT, Range.COUNT] = 8
    """Number of images."""
    sort: Annotated[Literal["radius", "idx", "abstain", "broken"], Role.RESULT] = "radius"
    """Which: radius takes them evenly from the hardest to the easiest, idx the first, abstain the
    abstentions and smallest radii, broken those whose class 'drf-fast attack' has changed."""
    epsilon: Annotated[float | None, Role.RESULT, Range.ABOVE_ZERO] = None
    """L2 strength of the attack in pixel units; the default is 2 sigma."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 32
    """Noisy copies m in each gradient of the attack."""
    steps: Annotated[int, Role.RESULT, Range.COUNT] = 20
    """Steps T of the attack."""
    n: Annotated[int, Role.RESULT, Range.COUNT] = 1000
    """Noisy copies whose votes are shown, and with which PREDICT judges the adversarial image."""
    certificates: Annotated[Path | None, Role.SOURCE] = None
    """Certification log to show; the default is the one with most images in the run folder."""
    data: Annotated[str | None, Role.RESULT] = None
    """Data set; the default is that of the training run."""
    data_dir: Annotated[Path | None, Role.PLACE] = None
    """Folder of the data set; the default is that of the training run."""
    split: Annotated[Literal["test", "train"], Role.RESULT] = "test"
    """Part of the data set from which images are taken."""
    arch: Annotated[str | None, Role.RESULT] = None
    """Architecture, as 'drf-fast certify' takes it."""
    normalize: Annotated[str | None, Role.RESULT] = None
    """Normalising first layer, as 'drf-fast certify' takes it."""
    device: Annotated[Device, Role.SPEED] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    seed: Annotated[int, Role.RESULT] = 0
    """Seed of the noise."""
    out: Annotated[Path | None, Role.PLACE] = None
    """PNG, PDF or SVG file; the default is images.png in the run folder, or noise.png."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the file."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Summarize certification logs, ours and published ones: ACR and certified accuracy.

    Logs that differ in nothing but a training seed are averaged; shards of one run are joined
    first. For example:
      drf-fast report gaussian=runs/g smoothadv='logs/adv_*.tsv' --compare
    """

    logs: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="LOG..."), Role.SOURCE
    ]
    """Logs of certify or predict, ours or published: files, run folders or others, patterns; each
    as PATH or, to name its row, NAME=PATH; - is standard input. Ours keep their settings in the
    .json beside them."""
    format: Annotated[Format, Role.CALL] = "table"
    """Output on stdout; json and csv hold everything that --details shows."""
    details: Annotated[bool, Role.CALL] = False
    """Also show 95 % bounds of certified accuracy over images, the largest possible radius and who
    reaches it, and quantiles of p_lower."""
    compare: Annotated[bool, Role.CALL] = False
    """Also show the difference of each method to the first, paired by images, with a 95 % bootstrap
    interval over images and seeds."""
    radii: Annotated[str | None, Role.CALL] = None
    """Radii at which to give the certified accuracy, 0.25,0.5,1 for example; the default is every
    quarter up to the largest."""
    envelope: Annotated[bool, Role.CALL] = False
    """Add a row of the highest certified accuracy at each radius."""
    plot: Annotated[Path | None, Role.PLACE] = None
    """Draw certified accuracy against radius into this PNG, PDF or SVG file."""
    plot_p: Annotated[Path | None, Role.PLACE] = None
    """Draw the distribution of p_lower (ECDF) into this file: the ACR rewards easy images, this
    shows the hard ones too."""
    html: Annotated[Path | None, Role.PLACE] = None
    """Write all of it as one HTML page that needs no network: charts, table, training, images."""
    paper: Annotated[bool, Role.CALL] = True
    """Show the row of Table 1 of the DRF paper beside ours where it has one."""
    table1: Annotated[bool, Role.CALL] = False
    """Lay the report out as Table 1 of the DRF paper, ours beside the paper's and the difference;
    tables do so by themselves where all logs have a row there and were made as the paper's."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the files of plots and page."""


def numbers(text: str, flag: str, example: str = "0.25,0.5,1") -> tuple[float, ...]:
    """Different numbers above 0 with commas between them, ascending.

    Raises:
        InputError: anything else.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(0 < value < 1e6 for value in found) or len(set(found)) < len(found):
        raise InputError(
            f"--{flag} must be different numbers above 0 with commas between them, {example} for "
            f"example, got {text!r}"
        )
    return tuple(sorted(found))
