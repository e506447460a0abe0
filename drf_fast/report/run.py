"""The command: read logs, write the report to standard output, draw the picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drf_fast.certlog import read_log
from drf_fast.errors import InputError
from drf_fast.report.plot import check_path, draw
from drf_fast.report.summary import Summary, summarize
from drf_fast.report.tables import as_dict, caption, cells, render

FORMATS = ("table", "markdown", "latex", "csv", "json")


def run(
    logs: Sequence[str | Path],
    *,
    format: str = "table",
    plot: str | Path | None = None,
    paper: bool | None = None,
    force: bool = False,
) -> int:
    """Report on certification logs.

    Args:
        logs: paths of logs, ours or of the field.
        format: one of ``FORMATS``; ``table`` is drawn on a terminal and aligned text elsewhere.
        plot: draw certified accuracy against radius to this file (PNG, PDF or SVG).
        paper: compare with the paper's Table 1; ``None``: where the logs are like the paper's.
        force: replace a picture that exists.

    Returns:
        0, the exit status.

    Raises:
        InputError: logs that are malformed or cannot be compared, or a picture that cannot be
            written.
        OSError: the disk is full.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format '{format}': expected one of {', '.join(FORMATS)}")
    picture = None if plot is None else Path(plot)
    if picture is not None:
        check_path(picture, force)
    summary = summarize([read_log(path) for path in logs], paper=paper)
    if picture is not None:
        draw(summary, picture)
    if format == "table" and sys.stdout.isatty():
        _print_rich(summary)
    else:
        print(render(summary, "plain" if format == "table" else format))
    if picture is not None:
        print(f"wrote {picture}", file=sys.stderr)
    return 0


def as_json(logs: Sequence[str | Path], *, plot: str | Path) -> dict[str, Any]:
    """The report as JSON-ready values, for a command that prints more than it; draws ``plot``.

    Raises:
        InputError: as ``run``.
    """
    summary = summarize([read_log(path) for path in logs])
    draw(summary, Path(plot))
    return as_dict(summary)


def _print_rich(summary: Summary) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, body = cells(summary)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(header[0], no_wrap=True)
    for title in header[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*row, style="dim" if row[0].startswith("  ") else None)
    console = Console()
    # On a narrow terminal long lines wrap; a table squeezed to fit would lose digits.
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    if needed > console.width:
        print(render(summary, "plain"))
        return
    console.print(table)
    console.print(caption(summary), style="dim", highlight=False)
