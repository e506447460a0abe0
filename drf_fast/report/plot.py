"""Figures of certified accuracy against radius and of the distribution of p_lower, as exact step
functions of all certificates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from drf_fast.errors import InputError
from drf_fast.report import style
from drf_fast.report.attacks import AttackCurve
from drf_fast.report.groups import Group
from drf_fast.report.intervals import clopper_pearson
from drf_fast.report.summary import Summary, certified_accuracy, certified_p
from drf_fast.runtime.text import images_of, number_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def curve(group: Group) -> Curve:
    """The certified-accuracy curve of a group, without a grid.

    Certified accuracy is a step function that is continuous from the left and falls just after
    each radius of a correct prediction; between two neighbours r_(i-1) < r <= r_i it is constant.

    Returns:
        r: 0 and all radii of correct predictions of all logs, ascending and each once, float64;
        mean, lowest and highest certified accuracy over the logs in % at r, float64.
    """
    radii = np.unique(np.concatenate([[0.0], *(log.radius[log.correct] for log in group.logs)]))
    shares = 100.0 * np.array([certified_accuracy(log, radii) for log in group.logs])
    return radii, shares.mean(axis=0), shares.min(axis=0), shares.max(axis=0)


def closed(curve: Curve) -> Curve:
    """A curve of ``curve`` with its fall to 0: beyond the largest radius nothing is certified."""
    r, mean, lowest, highest = curve
    mean, lowest, highest = (np.append(share, 0.0) for share in (mean, lowest, highest))
    return np.append(r, r[-1]), mean, lowest, highest


def ecdf(group: Group) -> Curve | None:
    """The empirical distribution function of p_lower of the true class, without a grid.

    Continuous from the right; at p = 1/2 it is the share of images with nothing certified. One
    minus its value just below Phi(r / sigma) is the certified accuracy at r.

    Returns:
        p: 1/2 and all p_lower of correct predictions of all logs, ascending and each once, float64;
        mean, lowest and highest share over the logs in % of images with p_lower <= p, float64;
        ``None`` if p_lower is unknown.
    """
    values = [np.sort(p) for log in group.logs if (p := certified_p(log, group.sigma)) is not None]
    if len(values) < len(group.logs):
        return None
    steps = np.unique(np.maximum(0.5, np.concatenate([[0.5], *values])))
    shares = np.array([100.0 * np.searchsorted(p, steps, side="right") / p.size for p in values])
    return steps, shares.mean(axis=0), shares.min(axis=0), shares.max(axis=0)


def draw(summary: Summary, path: Path, attacks: Sequence[AttackCurve] = ()) -> None:
    """Draw certified accuracy: a line per group (mean over seeds), a band from lowest to highest.

    For attacked methods, accuracy under attack of the same images is drawn above in the same
    colour, and lines of a single network have a band too: the 95 % interval over images. The true
    robust accuracy lies between the two lines, except for images on which PREDICT abstains.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    figure, axes = _figure(summary)
    for i, entry in enumerate(summary.groups):
        attacked = next((one for one in attacks if one.belongs_to(entry.group)), None)
        group = entry.group if attacked is None else attacked.group
        r, *shares = closed(curve(group))
        if attacked is None:
            _step(axes, i, group, (r, *shares), "pre", f" (ACR {entry.acr_mean:.3f})")
            continue
        if len(group.logs) == 1:
            shares[1:] = over_images(shares[0], len(group.logs[0]))
        all_images = attacked.images == summary.images
        few = "" if all_images else f", {number_of(attacked.images, 'image')}"
        _step(axes, i, group, (r, *shares), "pre", f", certified{few}", band=True)
        _under_attack(axes, i, attacked)
    axes.set_xlabel("L2 radius r (pixel units)")
    axes.set_ylabel("accuracy (%)" if attacks else "certified accuracy (%)")
    axes.set_xlim(left=0.0)
    axes.legend(frameon=False, loc=_free_corner(summary))
    style.save(figure, path)


def draw_p(summary: Summary, path: Path) -> None:
    """Draw the distribution of p_lower, as ``draw`` does, of the groups with a sigma.

    Raises:
        InputError: no group has a p_lower, or the folder cannot be written.
        OSError: the disk is full.
    """
    figure, axes = _figure(summary)
    largest = 0.0
    for i, entry in enumerate(summary.groups):
        steps = ecdf(entry.group)
        if steps is not None:
            p, *shares = steps
            largest = max(largest, p[-1])
            values = (np.append(p, 1.0), *(np.append(share, 100.0) for share in shares))
            _step(axes, i, entry.group, (nines(values[0]), *values[1:]), "post")
    if largest == 0.0:
        raise InputError(
            f"cannot plot to {path}: expected logs with p_lower, or with a radius and a sigma, got "
            "none; name the logs method_sigma0.50_seed.tsv"
        )
    ticks = nines_ticks(largest)
    axes.set_xticks([nines(p) for p in ticks], [f"{p:.15g}" for p in ticks])
    axes.set_xlim(nines(0.5), nines(largest) + 0.1)
    axes.set_xlabel("p_lower of the true class")
    axes.set_ylabel("images with at most this p_lower (%)")
    axes.legend(frameon=False, loc="upper left")
    style.save(figure, path)


def nines(p: np.ndarray | float) -> Any:
    """The position of p on the axis, -log10(1 - p), which resolves hard and easy images."""
    return -np.log10(np.maximum(1.0 - np.asarray(p), 1e-15))


def nines_ticks(largest: float) -> list[float]:
    """The values of p to be marked on that axis, up to the ``largest`` shown."""
    return [0.5, 0.8, *(1 - 10.0**-k for k in range(1, int(nines(largest)) + 2))]


def _figure(summary: Summary) -> tuple[Figure, Axes]:
    figure, axes = style.figure()
    axes.set_ylim(0.0, 100.0)
    style.title(axes, _title(summary))
    return figure, axes


def _step(
    axes: Axes,
    i: int,
    group: Group,
    values: tuple[Any, ...],
    where: Literal["pre", "post"],
    note: str = "",
    band: bool = False,
) -> None:
    x, mean, lowest, highest = values
    colour, dashes = style.colour(i), style.dashes(i)
    name = style.literal(group.label + note)
    axes.step(x, mean, where=where, color=colour, linestyle=dashes, linewidth=1.6, label=name)
    if band or len(group.logs) > 1:
        axes.fill_between(x, lowest, highest, step=where, color=colour, alpha=0.2, linewidth=0)


def over_images(shares: np.ndarray, images: int) -> list[np.ndarray]:
    """The 95 % interval of shares in % of ``images`` images."""
    lower, upper = clopper_pearson(shares / 100 * images, images)
    return [100.0 * lower, 100.0 * upper]


def _under_attack(axes: Axes, i: int, curve: AttackCurve) -> None:
    """Draw a marker for each strength, and steps: an attack is a bound for stronger ones too."""
    axes.plot(
        curve.epsilon,
        curve.correct,
        color=style.colour(i),
        linestyle=(0, (4, 2)),
        drawstyle="steps-post",
        linewidth=1.2,
        marker="o",
        markersize=4,
        label=style.literal(f"{curve.group.label}, under attack"),
    )
    axes.fill_between(
        curve.epsilon,
        curve.lower,
        curve.upper,
        step="post",
        color=style.colour(i),
        alpha=0.1,
        linewidth=0,
    )


def _free_corner(summary: Summary) -> Literal["lower left", "upper right"]:
    """The corner that no curve enters: below flat curves, above steep ones."""
    half = summary.radii[-1] / 2
    flat = all(
        certified_accuracy(log, [half])[0] > 0.35
        for entry in summary.groups
        for log in entry.group.logs
    )
    return "lower left" if flat else "upper right"


def _title(summary: Summary) -> str:
    n, alpha = summary.setting("n"), summary.setting("alpha")
    data = summary.setting("data")
    images = images_of(data, summary.images)
    which = " (in all logs)" if summary.of_logs else ""
    which += " (incomplete)" if summary.missing else ""
    terms = "" if n is None else f", n = {n:,}"
    terms += "" if alpha is None else f", α = {alpha}"
    return style.literal(images + which + terms)
