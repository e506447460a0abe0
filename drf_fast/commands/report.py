"""``drf-fast report``: read logs, print the report, draw the figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from drf_fast.certification.log import read_log
from drf_fast.commands import page
from drf_fast.config.choices import Format
from drf_fast.config.look import numbers
from drf_fast.errors import InputError
from drf_fast.report import export
from drf_fast.report import table1 as layout
from drf_fast.report.attacks import UNDER_ATTACK, AttackCurve, attack_cells, curves_of
from drf_fast.report.best import Positions
from drf_fast.report.plot import draw, draw_p
from drf_fast.report.sources import read_all
from drf_fast.report.style import check_path
from drf_fast.report.summary import Summary, summarize
from drf_fast.report.tables import (
    Table,
    best_cells,
    caption,
    draw_tables,
    incompleteness,
    tables_of,
)

FORMATS = get_args(Format)


def run(
    logs: Sequence[str | Path],
    *,
    format: str = "table",
    details: bool = False,
    compare: bool = False,
    plot: str | Path | None = None,
    plot_p: str | Path | None = None,
    html: str | Path | None = None,
    paper: bool | None = None,
    table1: bool | None = False,
    radii: str | None = None,
    envelope: bool = False,
    force: bool = False,
) -> int:
    """Report on certification logs.

    Args:
        logs: paths of logs, ours or published ones, folders or patterns, each as PATH or NAME=PATH;
            shards of one run are joined.
        format: one of ``FORMATS``; ``table`` is drawn on a terminal and aligned text elsewhere.
        details: show bounds of certified accuracy, the cap on the radius and quantiles of p_lower,
            which JSON and CSV always hold.
        compare: show each other group's paired difference to the first.
        plot: draw certified accuracy against radius to this file (PNG, PDF or SVG).
        plot_p: draw the distribution of p_lower to this file.
        html: write it as one page to this file.
        paper: compare with the paper's Table 1; ``None``: if the logs are comparable to it.
        table1: use the layout of the paper's Table 1, whatever n, alpha and images; ``None``: in
            formats other than CSV and JSON, if every group is compared with a row of it and neither
            details nor compare is requested.
        radii: radii of certified accuracy, comma-separated.
        envelope: add the highest certified accuracy at each radius.
        force: replace existing figures.

    Returns:
        0, the exit status.

    Raises:
        InputError: logs that are malformed or cannot be compared, or a figure that cannot be
            written.
        OSError: the disk is full.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format '{format}': expected one of {', '.join(FORMATS)}")
    chosen = None if radii is None else numbers(radii, "radii", zero=True)
    unfit = {"--details": details, "--compare": compare, "--no-paper": paper is False,
             "--radii": radii is not None, "--envelope": envelope}  # fmt: skip
    if table1 and any(unfit.values()):
        other = next(flag for flag, given in unfit.items() if given)
        raise InputError(
            f"--table1 is a layout without room for {other}: expected one of them; leave one out"
        )
    pictures = [Path(at) for at in (plot, plot_p) if at is not None]
    for path in pictures:
        check_path(path, force)
    if html is not None:
        check_path(Path(html), force, suffixes=(".html", ".htm"))
    if len({path.resolve() for path in pictures}) < len(pictures):
        raise InputError(f"{plot} would be both pictures: expected two names; choose another one")
    found = read_all(logs)
    summary = summarize(
        found.logs, paper=True if table1 else paper, compare_groups=compare, radii=chosen
    )
    _refuse_for_predictions(summary, table1=bool(table1), radii=radii, plot=bool(pictures),
                           html=html is not None)  # fmt: skip
    if table1 is None:
        readable = format not in ("csv", "json")  # whose content is always the same
        simple = readable and not any(unfit.values()) and not found.attacks
        table1 = simple and all(entry.paper is not None for entry in summary.groups)
    if table1:
        layout.entries(summary)  # raises before any figure is drawn
    if compare and len(summary.groups) < 2:
        raise InputError(
            "nothing to compare: expected logs of two methods or more, got one "
            f"({', '.join(entry.group.name for entry in summary.groups)}); give the logs of another"
        )
    attacks, broken = curves_of(summary, found.attacks)
    if plot is not None:
        draw(summary, Path(plot), attacks)
    if plot_p is not None:
        draw_p(summary, Path(plot_p))
    if html is not None:
        page.write(Path(html), summary, found.attacks, found.warnings())
    for warning in [*found.warnings(), *broken]:
        print(f"warning: {warning}", file=sys.stderr)
    if attacks and (table1 or format == "csv"):
        print(
            f"warning: {'--table1' if table1 else '--format csv'} has no columns for the attacks: "
            "left out; --format table and json have them",
            file=sys.stderr,
        )
    if summary.missing:
        print(f"warning: incomplete: {incompleteness(summary)}", file=sys.stderr)
    if table1:
        _print_table1(summary, format)
    else:
        _print(summary, format, details, envelope, attacks)
    for path in [*pictures, *([html] if html is not None else [])]:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _refuse_for_predictions(summary: Summary, **asked: object) -> None:
    given = [flag for flag, value in asked.items() if value]
    if summary.predictions and given:
        raise InputError(
            f"--{given[0]} is for certificates: expected logs of 'drf-fast certify', got "
            "predictions, which have no radius; leave it out"
        )


def _print(
    summary: Summary,
    format: str,
    details: bool,
    envelope: bool,
    attacks: tuple[AttackCurve, ...] = (),
) -> None:
    if format == "json":
        print(export.as_json(summary, envelope, attacks))
    elif format == "csv":
        print(export.as_csv(summary, envelope))
    else:
        tables = tables_of(summary, details, envelope)
        tables += [attack_cells(attacks)] if attacks else []
        bold = best_cells(summary, tables[0], details)
        note = caption(summary, details) + (f" {UNDER_ATTACK}" if attacks else "")
        _print_tables(tables, note, format, bold)


def _print_table1(summary: Summary, format: str) -> None:
    if format == "json":
        print(layout.as_json(summary))
    elif format == "csv":
        print(layout.as_csv(summary))
    else:
        bold = layout.best_cells(summary)
        _print_tables([layout.cells(summary)], layout.note(summary), format, bold)


def as_json(logs: Sequence[str | Path], *, plot: str | Path) -> dict[str, Any]:
    """The report as JSON-ready values, for commands that print it with more; draws ``plot``.

    Raises:
        InputError: as ``run``.
    """
    summary = summarize([read_log(path) for path in logs])
    draw(summary, Path(plot))
    return export.as_dict(summary)


def _print_tables(tables: list[Table], note: str, format: str, bold: Positions) -> None:
    """Print tables drawn with rich on a terminal that is wide enough, else as text."""
    plain = draw_tables(tables, note, "plain" if format == "table" else format, bold)
    if format != "table" or not sys.stdout.isatty():
        print(plain)
        return
    from rich.console import Console

    console = Console()
    drawn = [_rich_table(table) for table in tables]
    # On a narrow terminal long lines wrap; a table squeezed to fit would lose digits.
    wide = console.options.update(width=10_000)
    if max(console.measure(table, options=wide).maximum for table in drawn) > console.width:
        print(plain)
        return
    for table in drawn:
        console.print(table)
    console.print(note, style="dim", highlight=False, markup=False)


def _rich_table(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    header, body = table
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column(header[0], no_wrap=True)
    for title in header[1:]:
        drawn.add_column(title, justify="right", no_wrap=True)
    for row in body:
        style = "dim" if row[0].startswith("  ") else ""
        drawn.add_row(*map(Text, row), style=style)  # Text: a name may look like rich's markup
    return drawn
