"""Table 1 of the DRF paper (Wang, Zhou, Liu 2024) in its layout, with measured rows added.

For each method of the paper at each measured sigma: the measured row, the paper's, and the
difference; only the paper's if the method was not measured.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drf_fast.errors import InputError
from drf_fast.report import paper
from drf_fast.report.best import Positions, best
from drf_fast.report.paper import PaperRow
from drf_fast.report.summary import GroupSummary, Summary, certified_accuracy
from drf_fast.report.tables import Table, caption, rounded


@dataclass(frozen=True)
class Cells:
    """Numbers of one row: ACR, its standard deviation over seeds, certified accuracy in %."""

    source: str
    acr: float
    acr_std: float | None
    certified: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """One method at one sigma; ``rows``: measured, paper, difference, as far as they exist."""

    method: str
    sigma: float
    seeds: int | None
    rows: tuple[Cells, ...]


def radii() -> tuple[float, ...]:
    """The radii of the paper's table."""
    return tuple(next(iter(paper.table().values())).certified)


def entries(summary: Summary) -> list[Entry]:
    """The table by sigma, methods in the order of the paper, then those that it does not have.

    Raises:
        InputError: no group has a row in the paper.
    """
    known = paper.table()
    measured: dict[tuple[float | None, str], list[GroupSummary]] = {}
    for entry in summary.groups:
        measured.setdefault((entry.group.sigma, entry.group.method), []).append(entry)
    if not measured.keys() & known.keys():
        methods = list(dict.fromkeys(method for _, method in known))
        sigmas = sorted({sigma for sigma, _ in known})
        raise InputError(
            f"no log has a row in Table 1: expected methods {', '.join(methods)} at sigma "
            f"{', '.join(f'{sigma:g}' for sigma in sigmas)}, got "
            f"{', '.join(entry.group.in_words for entry in summary.groups)}; leave out --table1"
        )
    found = []
    for sigma in sorted({sigma for sigma, _ in measured if sigma is not None}):
        for at, method in known:
            if at == sigma:
                found += _entries(method, sigma, measured.pop((at, method), []), known[at, method])
        for key in [key for key in measured if key[0] == sigma]:
            found += _entries(key[1], sigma, measured.pop(key), None)
    return found


def _entries(
    method: str, sigma: float, groups: list[GroupSummary], printed: PaperRow | None
) -> Iterator[Entry]:
    there = None
    if printed is not None:
        there = Cells("paper", printed.acr, None, tuple(printed.certified.values()))
    if not groups and there is not None:
        yield Entry(method, sigma, None, (there,))
    for entry in groups:
        shares = [certified_accuracy(log, radii()) for log in entry.group.logs]
        certified = tuple(100.0 * float(share) for share in np.mean(shares, axis=0))
        rows = [Cells("measured", entry.acr_mean, entry.acr_std, certified)]
        if there is not None:
            gaps = tuple(a - b for a, b in zip(certified, there.certified, strict=True))
            rows += [there, Cells("difference", entry.acr_mean - there.acr, None, gaps)]
        yield Entry(entry.group.name, sigma, len(entry.acr), tuple(rows))


def cells(summary: Summary) -> Table:
    """Header and body as text; ACR with 3 decimals, shares with 1."""
    header = ["method", "sigma", "seeds", "ACR", *(f"{r:.2f}" for r in radii())]
    body = []
    for entry in entries(summary):
        for at, row in enumerate(entry.rows):
            first = [f"  {row.source}", "", ""]
            if row.source == "measured":
                first = [entry.method, f"{entry.sigma:g}", str(entry.seeds)]
            elif at == 0:
                first = [entry.method, f"{entry.sigma:g}", "paper"]
            sign = "+" if row.source == "difference" else ""
            acr = rounded(row.acr, f"{sign}.3f")
            if row.acr_std is not None:
                acr += f" ± {row.acr_std:.3f}"
            body.append([*first, acr, *(rounded(share, f"{sign}.1f") for share in row.certified)])
    return header, body


def best_cells(summary: Summary) -> Positions:
    """The cells of ``cells(summary)`` with the best measured number at their sigma."""
    header, body = cells(summary)
    sources = [(row.source, entry.sigma) for entry in entries(summary) for row in entry.rows]
    blocks = {at: sigma for at, (source, sigma) in enumerate(sources) if source == "measured"}
    return best(body, blocks, range(3, len(header)))


def note(summary: Summary) -> str:
    """A caption: images, n and alpha, and the meaning of the rows."""
    return (
        "Table 1 of Wang, Zhou, Liu (2024): measured, as printed (paper), measured minus printed "
        f"(difference). {caption(summary)}"
    )


def as_csv(summary: Summary) -> str:
    """One line per row, numbers in full precision; without a final newline."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    shares = [f"r{radius:.2f}" for radius in radii()]
    writer.writerow(["row", "method", "sigma", "seeds", "acr", "acr_std", *shares])
    for entry in entries(summary):
        for row in entry.rows:
            numbers = [row.acr, row.acr_std, *row.certified]
            seeds = entry.seeds if row.source == "measured" else None
            values = ["" if x is None else f"{x:.6f}" for x in numbers]
            writer.writerow([row.source, entry.method, f"{entry.sigma:g}", seeds, *values])
    return buffer.getvalue().rstrip("\n")


def as_json(summary: Summary) -> str:
    """All of it as JSON text."""
    content = {
        "caption": note(summary),
        "radii": radii(),
        "rows": [
            {
                "method": entry.method,
                "sigma": entry.sigma,
                "seeds": entry.seeds,
                **{
                    row.source: {
                        "acr": row.acr,
                        "acr_std": row.acr_std,
                        "certified_accuracy": row.certified,
                    }
                    for row in entry.rows
                },
            }
            for entry in entries(summary)
        ],
    }
    return json.dumps(content, indent=2)
