"""The figures of a sweep, in the manner of Fig. 3 of the DRF paper (Wang, Zhou, Liu 2024).

a, b) certified accuracy against the radius, a line for each value of the first varied parameter;
c, d) ACR against each parameter, with the standard deviation over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drf_fast.commands.sweep.grid import flag, format_value
from drf_fast.commands.sweep.summary import Result, Setting, label
from drf_fast.config import run_files
from drf_fast.report import style
from drf_fast.report.plot import closed, curve
from drf_fast.runtime.text import number_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SYMBOLS = {
    "lambda0": r"$\lambda_0$", "lambda_lr": r"$\zeta_\lambda$", "kappa": r"$\kappa$",
    "sigma": r"$\sigma$", "epsilon": r"$\epsilon$", "num_samples": "$m$", "steps": "$T$",
}  # fmt: skip
_NAMES = {
    "lambda0": "price of distance at the start",
    "lambda_lr": "learning rate of $\\lambda$",
    "kappa": "examples in the mean distance",
    "sigma": "noise level, pixel units",
    "epsilon": "attack strength, pixel units",
    "num_samples": "noisy copies of an image",
    "steps": "steps of the adversary",
}
_MOST_PANELS, _MOST_TICKS = 12, 10
_DECADE = 10.0

Rest = tuple[tuple[str, Any], ...]  # values of the parameters that a panel or a line holds fixed


def draw_all(result: Result, folder: Path) -> list[Path]:
    """Draw the figures that the grid allows and return the files.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    drawn = [_draw_curves(result, folder / run_files.CURVES)]
    for field in result.sweep.grid:
        if len({format_value(point.values[field]) for point in result.settings}) > 1:
            drawn.append(_draw_acr(result, field, folder / run_files.ACR_OF.format(flag(field))))
    return drawn


def _draw_curves(result: Result, path: Path) -> Path:
    field = next(iter(result.sweep.grid), None)
    panels: dict[Rest, list[Setting]] = {}
    for point in result.settings:
        panels.setdefault(_rest(point, field), []).append(point)
    chosen = list(panels.items())[:_MOST_PANELS]
    size = (6.4, 4.0) if len(chosen) == 1 else (4.6, 3.4)
    figure, axes = style.panels(len(chosen), *size)
    colours = _colours(result, field)
    for panel, (rest, points) in zip(axes, chosen, strict=True):
        for point in points:
            name = (
                "" if field is None else f"{_symbol(field)} = {format_value(point.values[field])}, "
            )
            at = 0 if field is None else _index(result.sweep.grid[field], point.values[field])
            _curve(
                panel, point, colours[at], style.dashes(at), f"{name}ACR {point.mean('acr'):.3f}"
            )
        panel.legend(frameon=False, fontsize=8, loc="best")
        if rest:
            style.title(panel, _rest_text(rest))
    axes[0].set_ylim(0.0, 100.0)
    axes[0].set_xlim(left=0.0)
    figure.supxlabel("L2 radius r (pixel units)", fontsize=10)
    figure.supylabel("certified accuracy (%)", fontsize=10)
    style.heading(figure, _title(result))
    style.save(figure, path)
    return path


def _curve(axes: Axes, point: Setting, colour: Any, dashes: str, text: str) -> None:
    r, mean, lowest, highest = closed(curve(point.group))
    axes.step(r, mean, where="pre", color=colour, linestyle=dashes, linewidth=1.6, label=text)
    if len(point.runs) > 1:
        axes.fill_between(r, lowest, highest, step="pre", color=colour, alpha=0.15, linewidth=0)


def _draw_acr(result: Result, field: str, path: Path) -> Path:
    lines: dict[Rest, list[Setting]] = {}
    for point in result.settings:
        lines.setdefault(_rest(point, field), []).append(point)
    values = [
        value
        for value in result.sweep.grid[field]
        if any(_index((point.values[field],), value) == 0 for point in result.settings)
    ]
    numeric = all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )
    figure, axes = style.figure(5.2, 3.8)
    for i, (rest, points) in enumerate(lines.items()):
        if numeric:
            points = sorted(points, key=lambda point: point.values[field])
        x = [point.values[field] if numeric else _index(values, point.values[field])
             for point in points]  # fmt: skip
        # Of one seed there is no spread: a bar of height 0 would look like precision.
        spreads = [point.spread("acr") for point in points]
        axes.errorbar(
            x,
            [point.mean("acr") or 0.0 for point in points],
            yerr=[math.nan if spread is None else spread for spread in spreads],
            color=style.colour(i),
            linestyle=style.dashes(i) if numeric else "none",
            marker="os^Dv<>"[i % 7],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.2,
            capsize=4,
            label=_rest_text(rest),
        )
    _x_axis(axes, values, numeric)
    axes.margins(y=0.15)
    name = _NAMES.get(field)
    axes.set_xlabel(f"{_symbol(field)} ({name})" if name else _symbol(field))
    axes.set_ylabel("ACR (pixel units)")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
    spread = "; bars: standard deviation over seeds" if len(result.sweep.seeds) > 1 else ""
    style.heading(figure, _title(result) + spread)
    style.save(figure, path)
    return path


def _x_axis(axes: Axes, values: Sequence[Any], numeric: bool) -> None:
    """Set ticks at the values if these are few; logarithmic if they span a decade."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if not numeric:
        axes.set_xticks(range(len(values)), [format_value(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    positive = [value for value in values if value > 0]
    wide = len(positive) > 1 and max(positive) / min(positive) >= _DECADE
    if wide and len(positive) == len(values):
        axes.set_xscale("log")
    elif wide and min(values) == 0:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    if len(values) <= _MOST_TICKS:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sorted(values), [format_value(value) for value in sorted(values)])


def _colours(result: Result, field: str | None) -> list[Any]:
    """Sequential colours for ordered values, else distinct ones."""
    values = () if field is None else result.sweep.grid[field]
    numeric = all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )
    if not (numeric and len(values) > 3):
        return [style.colour(i) for i in range(max(1, len(values)))]
    colours = style.ordered(len(values))
    order = sorted(range(len(values)), key=lambda i: values[i])
    return [colours[order.index(i)] for i in range(len(values))]


def _rest(point: Setting, field: str | None) -> Rest:
    return tuple(
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in point.values.items()
        if key != field
    )


def _rest_text(rest: Rest) -> str:
    return ", ".join(f"{_symbol(key)} = {format_value(value)}" for key, value in rest)


def _index(values: Sequence[Any], value: Any) -> int:
    return next((i for i, other in enumerate(values) if other == value), -1)


def _symbol(field: str) -> str:
    return _SYMBOLS.get(field, flag(field))


def _title(result: Result) -> str:
    """What was run, in two lines."""
    terms = result.sweep.certification
    seeds = len(result.sweep.seeds)
    images = len(result.settings[0].group.logs[0])
    what = label(result).replace("sigma = ", "σ = ")
    how = f"{images:,} test images, n = {terms['n']:,}, α = {terms['alpha']:g}"
    return f"{what}\n{how}, {number_of(seeds, 'seed')}"
