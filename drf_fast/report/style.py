"""Common style of all figures, and writing them."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drf_fast.errors import InputError
from drf_fast.runtime.files import refuse_missing_folder, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
# Okabe and Ito (2008): distinct for colour-blind readers and on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", "--", ":")
_HEADING_SIZE = 9  # points
_MOST_PER_INCH = 30  # characters of this size, of the narrowest


def colour(i: int) -> str:
    """Colour of the i-th line; lines with the same colour differ in ``dashes``."""
    return _COLOURS[i % len(_COLOURS)]


def dashes(i: int) -> str:
    """Line style of the i-th line."""
    return _DASHES[i // len(_COLOURS) % len(_DASHES)]


def ordered(count: int) -> list[Any]:
    """Colours of ``count`` values in order, dark to light: cividis without its palest part."""
    _load_matplotlib()
    from matplotlib import colormaps

    return [colormaps["cividis"](0.85 * i / max(1, count - 1)) for i in range(count)]


def check_path(path: Path, force: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse the path of a figure that could not be written, before any work is done.

    Raises:
        InputError: unknown format, the file exists, or its folder does not.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"cannot plot to {path}: expected a name that ends in {', '.join(suffixes)}, got "
            f"'{path.suffix}'; choose one of them"
        )
    if path.exists() and not force:
        raise InputError(
            f"{path} exists: expected a new file; replace it with --force or choose another name"
        )
    refuse_missing_folder(path)


def figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    drawn, axes = panels(1, width, height)
    return drawn, axes[0]


def panels(
    count: int,
    width: float,
    height: float,
    columns: int = 3,
    sharex: bool = True,
    sharey: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels of ``width`` x ``height`` inches that share their axes."""
    _load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    drawn = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    grid = drawn.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    grid = grid.ravel().tolist()
    for empty in grid[count:]:
        empty.remove()
    for axes in grid[:count]:
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn, grid[:count]


def _load_matplotlib() -> None:
    """Import it ignoring MPLBACKEND, which may name a missing backend; files need none."""
    if "matplotlib" in sys.modules:
        return
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def grid(
    rows: int, widths: Sequence[float], cell: float, left: float = 0.0, below: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows`` x ``len(widths)`` panels, ``cell`` inches high and widths x cell wide.

    ``left``: inches for the labels of the rows; ``below``: inches between rows.
    """
    _load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (left + 1.08 * cell * sum(widths), 0.5 + (1.06 * cell + below) * rows)
    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    return drawn, axes.tolist()


def literal(text: str) -> str:
    """A name as Matplotlib shows it: two dollar signs would make a formula of it.

    Bytes of a file's name that are no UTF-8, which Matplotlib refuses, are written as numbers.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def title(axes: Axes, text: str) -> None:
    """Set a small grey title."""
    axes.set_title(text, fontsize=9, color="0.35", loc="left")


def heading(drawn: Figure, text: str) -> None:
    """Set the small grey title of a whole figure, wrapped to its width; ``text`` is no formula."""
    text = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    inches = 0.96 * drawn.get_figwidth()
    lines = [part for line in text.split("\n") for part in _wrapped(line, inches)]
    drawn.suptitle(
        literal("\n".join(lines)), fontsize=_HEADING_SIZE, color="0.35", x=0.02, ha="left"
    )


def _wrapped(text: str, inches: float) -> list[str]:
    """``text`` in as few lines of this width as it needs, of about equal length."""
    width = max(1, min(len(text), int(_MOST_PER_INCH * inches)))
    lines = textwrap.wrap(text, width)
    while width > 1 and not _fit(lines, inches):
        width -= 1
        lines = textwrap.wrap(text, width)
    while width > 1:
        width -= 1
        other = textwrap.wrap(text, width, break_long_words=False)
        if len(other) > len(lines) or not _fit(other, inches):
            break
        lines = other
    return lines


def _fit(lines: Sequence[str], inches: float) -> bool:
    """Whether all lines of a heading are at most so wide."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=_HEADING_SIZE)
    widths = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return all(width <= 72 * inches for width in widths)  # of 72 points


def save(drawn: Figure, path: Path) -> None:
    """Write the figure in the format of the file's name, atomically.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=path.suffix.lower()[1:], dpi=160)
    write_atomic(path, buffer.getvalue())
