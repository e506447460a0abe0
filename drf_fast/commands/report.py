"""``drf-fast report``: read logs, print the report, draw the figures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from drf_fast.certification.log import read_log
from drf_fast.commands import page
from drf_fast.config.choices import Format
from drf_fast.config.look import ReportConfig, numbers
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


def run(config: ReportConfig, *, fitting: bool = False) -> int:
    """Report on certification logs.

    Args:
        config: the settings; a table is drawn on a terminal and aligned text elsewhere.
        fitting: use the layout of the paper's Table 1 without ``config.table1``, too, if every
            group is compared with a row of it and nothing is asked for that it has no room for.

    Returns:
        0, the exit status.

    Raises:
        InputError: logs that are malformed or cannot be compared, or a figure that cannot be
            written.
        OSError: the disk is full.
    """
    config = _checked(config)
    radii = None if config.radii is None else numbers(config.radii, "radii", zero=True)
    pictures = _pictures(config)
    found = read_all(config.logs)
    summary = summarize(
        found.logs,
        paper=True if config.table1 else None if config.paper else False,
        compare_groups=config.compare,
        radii=radii,
        common=config.common,
    )
    _refuse_for_summary(config, summary)
    attacks, broken = curves_of(summary, found.attacks)
    if fitting and not found.attacks and _fits_table1(config, summary):
        config = dataclasses.replace(config, table1=True)
    if config.table1:
        layout.entries(summary)  # raises before any figure is drawn
    if config.plot is not None:
        draw(summary, config.plot, attacks)
    if config.plot_p is not None:
        draw_p(summary, config.plot_p)
    if config.html is not None:
        page.write(config.html, summary, found.attacks, found.warnings())
    for warning in [*found.warnings(), *broken, *_omissions(config, summary, attacks)]:
        print(f"warning: {warning}", file=sys.stderr)
    if config.table1:
        _print_table1(summary, config.format)
    else:
        _print(config, summary, attacks)
    for path in [*pictures, *([config.html] if config.html is not None else [])]:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _checked(config: ReportConfig) -> ReportConfig:
    """The settings with one name for the format.

    Raises:
        InputError: an unknown format, or settings that exclude each other.
    """
    if config.format not in FORMATS:
        raise InputError(f"unknown format '{config.format}': expected one of {', '.join(FORMATS)}")
    if config.json:
        if config.format not in ("table", "json"):
            raise InputError(
                f"--json is --format json: expected one format, got {config.format} too; leave one "
                "of them out"
            )
        config = dataclasses.replace(config, format="json")
    others = _unlike_table1(config)
    if config.table1 and others:
        raise InputError(
            f"--table1 is a layout without room for {others[0]}: expected one of them; leave one "
            "out"
        )
    return config


def _unlike_table1(config: ReportConfig) -> list[str]:
    """The flags given for which the layout of Table 1 has no room."""
    flags = {"--details": config.details, "--compare": config.compare,
             "--no-paper": not config.paper, "--radii": config.radii is not None,
             "--envelope": config.envelope}  # fmt: skip
    return [flag for flag, given in flags.items() if given]


def _fits_table1(config: ReportConfig, summary: Summary) -> bool:
    readable = config.format not in ("csv", "json")  # whose content is always the same
    compared = all(entry.paper is not None for entry in summary.groups)
    return readable and compared and not _unlike_table1(config)


def _pictures(config: ReportConfig) -> list[Path]:
    """The files of the pictures to draw.

    Raises:
        InputError: a file of theirs or of the page cannot be written, or is that of both.
    """
    pictures = [path for path in (config.plot, config.plot_p) if path is not None]
    for path in pictures:
        check_path(path, config.force)
    if config.html is not None:
        check_path(config.html, config.force, suffixes=(".html", ".htm"))
    if len({path.resolve() for path in pictures}) < len(pictures):
        raise InputError(
            f"{config.plot} would be both pictures: expected two names; choose another one"
        )
    return pictures


def _refuse_for_summary(config: ReportConfig, summary: Summary) -> None:
    """Refuse what these logs cannot show."""
    asked = {"table1": config.table1, "radii": config.radii, "plot": config.plot or config.plot_p,
             "html": config.html}  # fmt: skip
    given = [flag for flag, value in asked.items() if value]
    if summary.predictions and given:
        raise InputError(
            f"--{given[0]} is for certificates: expected logs of 'drf-fast certify', got "
            "predictions, which have no radius; leave it out"
        )
    if config.compare and len(summary.groups) < 2:
        raise InputError(
            "nothing to compare: expected logs of two methods or more, got one "
            f"({', '.join(entry.group.name for entry in summary.groups)}); give the logs of another"
        )


def _omissions(
    config: ReportConfig, summary: Summary, attacks: tuple[AttackCurve, ...]
) -> Iterator[str]:
    """Sentences on what is not in the report."""
    if attacks and (config.table1 or config.format == "csv"):
        where = "--table1" if config.table1 else "--format csv"
        yield (
            f"{where} has no columns for the attacks: left out; --format table and json have them"
        )
    if summary.missing:
        yield f"incomplete: {incompleteness(summary)}"


def _print(config: ReportConfig, summary: Summary, attacks: tuple[AttackCurve, ...]) -> None:
    if config.format == "json":
        print(export.as_json(summary, config.envelope, attacks))
    elif config.format == "csv":
        print(export.as_csv(summary, config.envelope))
    else:
        tables = tables_of(summary, config.details, config.envelope)
        tables += [attack_cells(attacks)] if attacks else []
        bold = best_cells(summary, tables[0], config.details)
        note = caption(summary, config.details) + (f" {UNDER_ATTACK}" if attacks else "")
        _print_tables(tables, note, config.format, bold)


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
