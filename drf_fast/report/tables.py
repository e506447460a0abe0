"""A report as aligned text, Markdown or LaTeX, each with n, alpha and the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drf_fast.report import paper
from drf_fast.report.best import Positions, best
from drf_fast.report.compare import RESAMPLES, none_for_nan
from drf_fast.report.groups import Group
from drf_fast.report.summary import QUANTILES, Summary
from drf_fast.runtime.text import images_of, rounded_down

Table = tuple[list[str], list[list[str]]]
ENVELOPE = "best at each radius"
_MOST_SIGMAS = 9.0  # Phi^-1 of the largest double below 1 is 8.2
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
    }
)


@dataclass(frozen=True)
class Line:
    """One row of numbers: a group as measured, or a row that belongs to it.

    ``kind`` is "measured"; "lower" or "upper", the interval over images; "minus", "minus lower" or
    "minus upper", the paired difference to the first group and its interval; "paper" or
    "difference", the paper's row and measured minus paper.
    """

    kind: str
    group: Group
    seeds: int | None
    acr: float | None
    acr_std: float | None
    abstained: float | None
    certified: tuple[float | None, ...]


def lines(summary: Summary, intervals: bool) -> list[Line]:
    """The rows of the table, each group followed by the rows that belong to it."""
    rows: list[Line] = []
    for entry in summary.groups:
        group, row = entry.group, entry.paper
        acr = (None, None) if summary.predictions else (entry.acr_mean, entry.acr_std)
        measured = Line("measured", group, len(entry.acr), *acr, entry.abstained, entry.certified)
        rows.append(measured)
        if intervals:
            rows.append(Line("lower", group, None, None, None, None, entry.lower))
            rows.append(Line("upper", group, None, None, None, None, entry.upper))
        if entry.comparison is not None:
            found = entry.comparison
            for kind, values in (
                ("minus", found.difference),
                ("minus lower", found.lower),
                ("minus upper", found.upper),
            ):
                mean, *certified, abstained = none_for_nan(values)
                mean = None if summary.predictions else mean
                rows.append(Line(kind, group, None, mean, None, abstained, tuple(certified)))
        if row is not None:
            printed = tuple(row.certified.get(radius) for radius in summary.radii)
            gaps = tuple(
                None if there is None else here - there
                for here, there in zip(entry.certified, printed, strict=True)
            )
            rows.append(Line("paper", group, None, row.acr, None, None, printed))
            difference = entry.acr_mean - row.acr
            rows.append(Line("difference", group, None, difference, None, None, gaps))
    return rows


def caption(summary: Summary, details: bool = False) -> str:
    """The images, n, alpha and other conditions of the numbers, in one or two sentences."""
    budget, data = summary.setting("budget"), summary.setting("data")
    what = (
        "accuracy of the smoothed classifier in %, where it abstains counted as wrong"
        if summary.predictions
        else "ACR and certified accuracy in % at L2 radius r (pixel units)"
    )
    parts = [
        f"{what}: {images_of(data, summary.images)}{_of_logs(summary)}",
        _terms(summary)
        + (f", budget {budget}{_stop(summary)}" if budget not in (None, "fixed") else "")
        + (", sound in floating point" if summary.setting("sound") else ""),
    ]
    if any(entry.acr_std is not None for entry in summary.groups):
        parts.append("± is the standard deviation over seeds")
    if details:
        parts.append("lower and upper are 95 % Clopper-Pearson bounds over images, not over seeds")
    else:
        parts.append(
            f"shares hold to within {_widest(summary):.1f} points (95 % Clopper-Pearson over "
            "images, not over seeds)"
        )
    if any(entry.comparison for entry in summary.groups):
        fewest = min(len(entry.acr) for entry in summary.groups)
        parts.append(
            "minus is the difference on the same images, with a 95 % bootstrap interval over "
            f"images and seeds ({RESAMPLES:,} resamples)"
            + (", over images alone for a method with one seed" if fewest == 1 else "")
            + (", too narrow with so few seeds" if 1 < fewest < 5 else "")
        )
        first, *others = (entry.group.in_words for entry in summary.groups)
        parts.append(f"compared with {first}: {', '.join(others)}")
    caps = {e.group.sigma: e.group.cap for e in summary.groups if e.group.cap is not None}
    if caps:
        listed = ", ".join(f"{cap:.3f} at sigma = {sigma:g}" for sigma, cap in caps.items())
        reached = max(entry.at_cap or 0.0 for entry in summary.groups)
        by = f"reached by up to {reached:.1f} % of images" if reached else "reached by no image"
        plain = budget in (None, "fixed") and not summary.setting("sound")
        formula = " sigma*Phi^-1(alpha^(1/n))" if plain else ""
        parts.append(f"largest possible radius{formula}: {listed}, {by}")
    parts += [
        f"{group.in_words} has a radius of {group.largest / group.sigma:.0f} sigma, more than any "
        "number of samples proves: give radii and sigma in pixel units"
        for group in (entry.group for entry in summary.groups)
        if group.sigma is not None and group.largest > _MOST_SIGMAS * group.sigma
    ]
    if any(entry.abstained is None for entry in summary.groups):
        parts.append("abstentions of methods certified with --skip-wrong are unknown")
    if details:
        parts.append(
            "q % of images have a p_lower of at most that in column p q% (- where nothing is "
            "certified)"
        )
    if any(entry.paper for entry in summary.groups):
        parts.append(
            f"paper: Wang, Zhou, Liu (2024), Table 1, {paper.IMAGES:,} MNIST images, "
            f"n = {paper.N:,}, alpha = {paper.ALPHA}"
        )
    incomplete = f"INCOMPLETE: {incompleteness(summary)}. " if summary.missing else ""
    return incomplete + "; ".join(parts) + "."


def _of_logs(summary: Summary) -> str:
    if summary.of_logs is None:
        return ""
    least, most = (f"{size:,}" for size in summary.of_logs)
    hold = f"{least} to {most}" if least != most else least
    return f", those that all logs share (each holds {hold})"


def _terms(summary: Summary) -> str:
    """The values of n and alpha, and which of them are unknown."""
    values = {key: summary.setting(key) for key in ("n", "alpha")}
    known = {key: value for key, value in values.items() if value is not None}
    unknown = [key for key in values if key not in known]
    said = ", ".join(f"{key} = {value:,}" for key, value in known.items())
    if any(entry.group.setting(key) is None for entry in summary.groups for key in known):
        said += " where they are known"
    if unknown:
        said += ", " if known else ""
        said += f"{' and '.join(unknown)} unknown (no configuration beside the logs)"
    return said


def _stop(summary: Summary) -> str:
    radius, tolerance = summary.setting("radius"), summary.setting("tolerance")
    if all(log.config is None for entry in summary.groups for log in entry.group.logs):
        return " (n differs between images, the largest is given)"
    if radius is not None:
        return f" (stopped once R >= {radius} was decided: larger radii are understated)"
    return "" if tolerance is None else f" (stopped at a tolerance of {tolerance})"


def incompleteness(summary: Summary) -> str:
    """What the logs lack, in one clause."""
    return "; ".join(map(str, summary.missing))


def _widest(summary: Summary) -> float:
    return max(
        max(share - low, high - share)
        for entry in summary.groups
        for share, low, high in zip(entry.certified, entry.lower, entry.upper, strict=True)
    )


def radius_label(radius: float) -> str:
    """The radius with 2 decimals, or more if needed: 0.50, 0.125."""
    short = f"{radius:.2f}"
    return short if float(short) == radius else f"{radius:g}"


def cells(summary: Summary, intervals: bool = False, envelope: bool = False) -> Table:
    """Header and body as text; ACR with 3 decimals, shares with 1."""
    columns = ["ACR", *map(radius_label, summary.radii)]
    if summary.predictions:
        columns = ["accuracy"]
    header = ["method", "sigma", "seeds", *columns, "abstain"]
    body = []
    for line in lines(summary, intervals):
        signed = "+" if line.kind.startswith(("difference", "minus")) else ""
        acr = "" if line.acr is None else rounded(line.acr, f"{signed}.3f")
        if line.acr_std is not None:
            acr += f" ± {line.acr_std:.3f}"
        first = [line.group.name, line.group.sigma_text, str(line.seeds)]
        if line.kind != "measured":
            first = [f"  {_below(line.kind, summary)}", "", ""]
        shares = [_share(value, signed) for value in line.certified]
        numbers = shares if summary.predictions else [acr, *shares]
        body.append([*first, *numbers, _share(line.abstained, signed)])
    if envelope:
        shares = [_share(share, "") for share, _ in summary.envelope]
        body.append([ENVELOPE, "", "", *([] if summary.predictions else [""]), *shares, ""])
    return header, body


def best_cells(summary: Summary, table: Table, intervals: bool = False) -> Positions:
    """The cells of ``cells(summary, intervals)`` with the best ACR or share."""
    blocks = {
        at: line.group.sigma
        for at, line in enumerate(lines(summary, intervals))
        if line.kind == "measured"
    }
    return best(table[1], blocks, range(3, len(table[0]) - 1))


def detail_cells(summary: Summary) -> Table:
    """A second table: the largest possible radius, the share that reaches it, p_lower quantiles."""
    header = ["method", "sigma", "largest r", "reach it", *(f"p {100 * q:g}%" for q in QUANTILES)]
    body = [
        [
            entry.group.name,
            entry.group.sigma_text,
            "-" if entry.group.cap is None else f"{entry.group.cap:.3f}",
            "-" if entry.at_cap is None else f"{entry.at_cap:.1f} %",
            *map(probability, entry.p_quantiles),
        ]
        for entry in summary.groups
    ]
    return header, body


def _below(kind: str, summary: Summary) -> str:
    if kind != "minus":
        return kind.replace(" ", ", ") + (" 95 %" if kind.endswith(("lower", "upper")) else "")
    first = summary.groups[0].group
    same_name = [e for e in summary.groups if e.group.name == first.name]
    return f"minus {first.name}" + (f", sigma {first.sigma_text}" if len(same_name) > 1 else "")


def _share(value: float | None, signed: str) -> str:
    return "" if value is None else rounded(value, f"{signed}.1f")


def rounded(value: float, style: str) -> str:
    """``value`` in this format."""
    text = f"{value:{style}}"
    return text.lstrip("+-") if float(text) == 0 else text  # a zero has no sign


def probability(p: float | None) -> str:
    """A lower bound with 5 decimals, never rounded up; "-" for None."""
    return "-" if p is None else rounded_down(p, 5)


def draw_tables(
    tables: Sequence[Table], note: str, style: str, bold: Positions = frozenset()
) -> str:
    """Tables of text and the note below them as plain, markdown or latex.

    ``bold``: the cells of the first table that are set in bold, which plain text cannot.
    """
    if style == "plain":
        return _plain(tables, note)
    return (_markdown if style == "markdown" else _latex)(tables, note, bold)


def tables_of(summary: Summary, details: bool, envelope: bool = False) -> list[Table]:
    """The table, and with ``details`` the second one, of certificates."""
    second = [detail_cells(summary)] if details and not summary.predictions else []
    return [cells(summary, details, envelope), *second]


def _plain(tables: Sequence[Table], note: str) -> str:
    blocks = []
    for header, body in tables:
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        rows = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [header, *body]
        ]
        blocks.append("\n".join(rows))
    return "\n\n".join([*blocks, note])


def _marked(body: list[list[str]], bold: Positions, mark: str) -> list[list[str]]:
    return [
        [
            mark.replace("_", cell) if (at, column) in bold else cell
            for column, cell in enumerate(row)
        ]
        for at, row in enumerate(body)
    ]


def _markdown(tables: Sequence[Table], note: str, bold: Positions) -> str:
    blocks = []
    for number, (header, body) in enumerate(tables):
        rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in [header, *body]]
        rows[1:] = _marked(rows[1:], bold, "**_**") if number == 0 else rows[1:]
        rule = ["---", *("---:" for _ in header[1:])]
        lines_ = ["| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]]
        blocks.append("\n".join(lines_))
    return "\n\n".join([*blocks, note])


def _latex(tables: Sequence[Table], note: str, bold: Positions) -> str:
    blocks = []
    for number, (header, body) in enumerate(tables):
        titles = [_latex_text(header[0]), r"$\sigma$", *map(_latex_text, header[2:])]
        escaped = [[_latex_text(cell) for cell in row] for row in body]
        escaped = _marked(escaped, bold, r"\textbf{_}") if number == 0 else escaped
        rows = [" & ".join(row) + r" \\" for row in escaped]
        blocks += [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    start = ["% needs \\usepackage{booktabs}", r"\begin{table}"]
    end = [rf"\caption{{{_latex_text(note)}}}", r"\end{table}"]
    return "\n".join([*start, *blocks, *end])


def _latex_text(text: str) -> str:
    if text.startswith("  "):
        return r"\quad " + _latex_text(text.strip())
    return text.translate(_LATEX)
