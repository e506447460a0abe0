"""Certified accuracy against radius, drawn exactly: every radius of every log is a step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np

from drf_fast.errors import InputError
from drf_fast.files import write_atomic
from drf_fast.report.groups import Group
from drf_fast.report.summary import Summary, certified_accuracy

SUFFIXES = (".png", ".pdf", ".svg")
# Okabe and Ito (2008): distinct for colour-blind readers and on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLES = ("-", "--", ":")


def curve(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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


def check_path(path: Path, force: bool) -> None:
    """Refuse a picture that could not be written, before any work is done.

    Raises:
        InputError: unknown format, or the file exists.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"cannot plot to {path}: expected a name that ends in {', '.join(SUFFIXES)}, got "
            f"'{path.suffix}'; choose one of them"
        )
    if path.exists() and not force:
        raise InputError(
            f"{path} exists: expected a new file; replace it with --force or choose another name"
        )


def draw(summary: Summary, path: Path) -> None:
    """Draw one line a group (mean over seeds) with a band from the lowest to the highest seed.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, entry in enumerate(summary.groups):
        group = entry.group
        colour = _COLOURS[i % len(_COLOURS)]
        style = _STYLES[i // len(_COLOURS) % len(_STYLES)]
        label = group.method + ("" if group.sigma is None else f", σ = {group.sigma:g}")
        r, mean, lowest, highest = (np.append(v, v[-1]) for v in curve(group))
        mean[-1] = lowest[-1] = highest[-1] = 0.0  # beyond the largest radius nothing is certified
        axes.step(
            r,
            mean,
            where="pre",
            color=colour,
            linestyle=style,
            linewidth=1.6,
            label=f"{label} (ACR {entry.acr_mean:.3f})",
        )
        if len(group.logs) > 1:
            axes.fill_between(r, lowest, highest, step="pre", color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("L2 radius r (pixel units)")
    axes.set_ylabel("certified accuracy (%)")
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 100.0)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc=_free_corner(summary))
    axes.set_title(_title(summary), fontsize=9, color="0.35", loc="left")

    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=160)
    write_atomic(path, buffer.getvalue())


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
    images = f"{summary.images:,} images" + (f" of {data}" if data else "")
    return images + ("" if n is None or alpha is None else f", n = {n:,}, α = {alpha}")
