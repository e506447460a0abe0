"""The settings of the commands that look at what was certified: attack, gap, show, report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from drf_fast.config.choices import AskedArithmetic, Device, Format, Split
from drf_fast.config.options import NetworkConfig, SmoothedConfig
from drf_fast.config.tags import Range, Role, Section, Tag
from drf_fast.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig(SmoothedConfig):
    """Attack the smoothed classifier as Salman et al. (2019) do, and check its certificates.

    PGD on the smoothed loss, with restarts, and DDN look for the worst image within each epsilon;
    PREDICT determines its class on noise that the attack has not seen. The log has one line per
    image and epsilon; --resume continues an interrupted run. The exit status is also 1 if an image
    changes its class inside its certified radius. For example:
      drf-fast attack runs/RUN --epsilons 0.25,0.5,1 --max-images 100
    """

    n: Annotated[int, Role.RESULT, Range.COUNT] = 1000
    """Noise samples with which PREDICT judges an image."""
    alpha: Annotated[float, Role.RESULT] = 0.001
    """Highest probability, for each judgement of PREDICT, that it is wrong."""
    precision: Annotated[AskedArithmetic, Role.RESULT, Section.COMPUTATION, Tag.MEASURED] = "auto"
    """Arithmetic of the network; auto takes that of the certificates; without them fp32 or, on a
    GPU, the faster of fp32 and tf32; fastest also tries bf16."""
    sound: Annotated[bool, Role.RESULT] = False
    """Refused here: adversarial images lie between the levels of 8-bit images."""
    epsilons: Annotated[str | None, Role.RESULT] = None
    """L2 strengths in pixel units, such as 0.25,0.5,1; the default is sigma, 2 and 3 sigma."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 32
    """Noisy copies m of an image in each gradient; published attacks use up to 128."""
    steps: Annotated[int, Role.RESULT, Range.COUNT] = 20
    """Steps T of PGD, each of size 2 epsilon / T; published attacks use up to 100."""
    restarts: Annotated[int, Role.RESULT, Range.COUNT] = 2
    """Number of PGD runs: the first from the image, the others from random points in the ball."""
    ddn_steps: Annotated[int, Role.RESULT, Range.FROM_ZERO] = 40
    """Steps of the second attack, DDN (Rony et al. 2019); 0 turns it off."""
    certificates: Annotated[Path | None, Role.SOURCE] = None
    """Certification log to compare with; the default is the log of this network and sigma with the
    most images in the run folder."""
    skip: Annotated[int | None, Role.RESULT, Section.DATA, Range.COUNT] = None  # type: ignore[assignment]
    """Take every K-th image, starting with the first; the default is that of the certificates, and
    no image beyond theirs."""
    max_images: Annotated[int | None, Role.RESULT, Section.DATA, Range.COUNT] = 20
    """Take at most this many images; for all of them: --max-images None."""
    shard: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Attack part i of k, written i/k, into its own log; report combines the logs."""
    out: Annotated[Path | None, Role.PLACE] = None
    """Log file; the default is beside the checkpoint, with sigma and n in its name, after the name
    of a checkpoint that is not called checkpoint.pt."""
    resume: Annotated[bool, Role.CALL] = False
    """Continue the log, if there is one."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapConfig(NetworkConfig):
    """Measure the confidence gap of networks under noise: quantiles, histogram and density.

    The gap is log F^y(x + delta) - max_{c != y} log F^c(x + delta), for the noisy copies of test
    images that --over selects (Fig. 2 of the DRF paper). For example:
      drf-fast gap runs/smoothadv runs/smoothadv-drf --plot gap.png
    """

    checkpoints: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN...]"), Role.SOURCE
    ] = ()
    """Checkpoints or run folders, one curve each; those with the same method and sigma count as
    seeds; not needed if --arch package.module:factory makes a network with its weights."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 1
    """Noisy copies of each image."""
    over: Annotated[Literal["copy", "vote", "all"], Role.RESULT] = "copy"
    """Which copies to use: copy takes correctly classified copies, vote all copies of images whose
    majority of copies is correct, all every copy."""
    plot: Annotated[Path | None, Role.PLACE] = None
    """Draw histogram and density to this PNG, PDF or SVG file."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the plot file."""
    json: Annotated[bool, Role.CALL] = False
    """Print the numbers as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw test images as the smoothed classifier sees them, or under several levels of noise.

    For each image: the image, a noisy copy, the adversarial image, their difference, the votes for
    the classes and the certificate. For example:
      drf-fast show runs/RUN --sort radius --images 12 --out images.pdf
      drf-fast show --noise cifar10 --sigma 0.25,0.5,1
    """

    run: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]"), Role.SOURCE
    ] = None
    """Run folder, or a checkpoint with its certificates beside it; not needed if --arch
    package.module:factory makes a network with its weights."""
    noise: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """A data set to show instead of a run, at each noise level of --sigma."""
    sigma: Annotated[str | None, Role.RESULT] = None
    """Noise level in pixel units; for a run the default is that of its training; with --noise
    several levels, by default 0.25,0.5,1."""
    images: Annotated[int, Role.RESULT, Section.DATA, Range.COUNT] = 8
    """Number of images."""
    sort: Annotated[Literal["radius", "idx", "abstain", "broken"], Role.RESULT, Section.DATA] = (
        "radius"
    )
    """Which images: radius takes them evenly from the hardest to the easiest, idx the first ones,
    abstain abstentions and smallest radii, broken those whose class 'drf-fast attack' changed."""
    epsilon: Annotated[float | None, Role.RESULT, Range.ABOVE_ZERO] = None
    """L2 strength of the attack in pixel units; the default is 2 sigma."""
    num_samples: Annotated[int, Role.RESULT, Range.COUNT] = 32
    """Noisy copies m in each gradient of the attack."""
    steps: Annotated[int, Role.RESULT, Range.COUNT] = 20
    """Steps T of the attack."""
    n: Annotated[int, Role.RESULT, Range.COUNT] = 1000
    """Noise samples for the votes shown, and for PREDICT on the adversarial image."""
    certificates: Annotated[Path | None, Role.SOURCE] = None
    """Certification log to show; the default is the one with the most images in the run folder."""
    data: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Data set; the default is that of the training run."""
    data_dir: Annotated[Path | None, Role.PLACE, Section.DATA] = None
    """Folder of the data set, or FILE.npz; the default is that of the training run."""
    split: Annotated[Split, Role.RESULT, Section.DATA] = "test"
    """Part of the data set to take images from."""
    arch: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Architecture, as 'drf-fast certify' takes it."""
    normalize: Annotated[str | None, Role.RESULT, Section.DATA] = None
    """Normalising first layer, as 'drf-fast certify' takes it."""
    device: Annotated[Device, Role.SPEED] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    threads: Annotated[int | Literal["auto"], Role.SPEED, Range.COUNT] = "auto"
    """CPU threads; auto takes torch's number."""
    seed: Annotated[int, Role.RESULT] = 0
    """Seed of the noise."""
    out: Annotated[Path | None, Role.PLACE] = None
    """PNG, PDF or SVG file; the default is images.png in the run folder, or noise.png."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the file."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Summarize certification logs, ours and published ones: ACR and certified accuracy.

    Logs that differ only in the training seed are averaged; shards of one run are joined first.
    For example:
      drf-fast report gaussian=runs/g smoothadv='logs/adv_*.tsv' --compare
    """

    logs: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="LOG..."), Role.SOURCE
    ]
    """Logs of certify or predict, ours or published: files, folders or patterns, each as PATH or,
    to name its row, NAME=PATH; - is standard input. Our logs have their settings in the .json
    beside them."""
    format: Annotated[Format, Role.CALL] = "table"
    """Output on stdout; json and csv contain everything that --details shows."""
    json: Annotated[bool, Role.CALL] = False
    """The same as --format json."""
    details: Annotated[bool, Role.CALL] = False
    """Also show 95 % bounds of certified accuracy over images, the largest possible radius and how
    many images reach it, and quantiles of p_lower."""
    compare: Annotated[bool, Role.CALL] = False
    """Also show the difference of each method to the first, paired by images, with a 95 % bootstrap
    interval over images and seeds."""
    radii: Annotated[str | None, Role.CALL] = None
    """Radii at which to show certified accuracy, such as 0.25,0.5,1; the default is every quarter
    up to the largest radius."""
    envelope: Annotated[bool, Role.CALL] = False
    """Add a row with the highest certified accuracy at each radius."""
    common: Annotated[bool, Role.CALL] = False
    """Restrict logs of different images to the images that all of them share."""
    plot: Annotated[Path | None, Role.PLACE] = None
    """Draw certified accuracy against radius to this PNG, PDF or SVG file."""
    plot_p: Annotated[Path | None, Role.PLACE] = None
    """Draw the distribution of p_lower (ECDF) to this file: the ACR favours easy images, this shows
    hard ones too."""
    html: Annotated[Path | None, Role.PLACE] = None
    """Write everything as one HTML page that needs no network: charts, table, training, images."""
    paper: Annotated[bool, Role.CALL] = True
    """Show the matching row of Table 1 of the DRF paper beside ours, if there is one."""
    table1: Annotated[bool, Role.CALL] = False
    """Lay the report out as Table 1 of the DRF paper: our values, the paper's, and the difference.
    This is automatic if all logs match a row there and were made with the paper's protocol."""
    force: Annotated[bool, Role.CALL] = False
    """Replace the files of plots and page."""


def numbers(
    text: str, flag: str, example: str = "0.25,0.5,1", *, zero: bool = False
) -> tuple[float, ...]:
    """Different numbers above 0 with commas between them, ascending; ``zero``: 0 as well.

    Raises:
        InputError: anything else.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = (math.nan,)
    known = all(0 < value < 1e6 or (zero and value == 0) for value in found)
    if not known or len(set(found)) < len(found):
        least = "of 0 or more" if zero else "above 0"
        raise InputError(
            f"--{flag} must be different numbers {least} with commas between them, {example} for "
            f"example, got {text!r}"
        )
    return tuple(sorted(found))
