"""A report as text: aligned, Markdown, LaTeX, CSV, JSON. All say n, alpha and the images."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from drf_fast.report import paper
from drf_fast.report.summary import GroupSummary, Summary


@dataclass(frozen=True)
class Line:
    """One row of numbers: a group as measured, the paper's, or measured minus paper."""

    kind: str
    method: str
    sigma: float | None
    seeds: int | None
    acr: float
    acr_std: float | None
    abstained: float | None
    certified: tuple[float | None, ...]


def lines(summary: Summary) -> list[Line]:
    """The rows of the table, each group followed by the paper's row and the difference."""
    rows: list[Line] = []
    for entry in summary.groups:
        group, row = entry.group, entry.paper
        name = (group.method, group.sigma)
        measured = (len(entry.acr), entry.acr_mean, entry.acr_std, entry.abstained)
        rows.append(Line("measured", *name, *measured, entry.certified))
        if row is not None:
            printed = tuple(row.certified.get(radius) for radius in summary.radii)
            gaps = tuple(
                None if there is None else here - there
                for here, there in zip(entry.certified, printed, strict=True)
            )
            rows.append(Line("paper", *name, None, row.acr, None, None, printed))
            difference = entry.acr_mean - row.acr
            rows.append(Line("difference", *name, None, difference, None, None, gaps))
    return rows


def caption(summary: Summary) -> str:
    """What the numbers are bound to, in one or two sentences."""
    n, alpha = summary.setting("n"), summary.setting("alpha")
    unknown = any(entry.group.setting("n") is None for entry in summary.groups)
    if n is None or alpha is None:
        terms = "n and alpha unknown (no configuration beside the logs)"
    else:
        terms = f"n = {n:,}, alpha = {alpha}" + (" where they are known" if unknown else "")
    budget, data = summary.setting("budget"), summary.setting("data")
    parts = [
        f"ACR and certified accuracy in % at L2 radius r (pixel units): {summary.images:,} images"
        + (f" of {data}" if data else ""),
        terms + (f", budget {budget}" if budget not in (None, "fixed") else ""),
    ]
    if any(entry.acr_std is not None for entry in summary.groups):
        parts.append("± is the standard deviation over seeds")
    caps = {e.group.sigma: e.group.cap for e in summary.groups if e.group.cap is not None}
    if caps:
        listed = ", ".join(f"{cap:.3f} at sigma = {sigma:g}" for sigma, cap in caps.items())
        parts.append(f"largest possible radius sigma*Phi^-1(alpha^(1/n)): {listed}")
    if any(entry.paper for entry in summary.groups):
        parts.append(
            f"paper: Wang, Zhou, Liu (2024), Table 1, {paper.IMAGES:,} MNIST images, "
            f"n = {paper.N:,}, alpha = {paper.ALPHA}"
        )
    return "; ".join(parts) + "."


def cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and body as text; ACR with 3 decimals, shares with 1."""
    header = ["method", "sigma", "seeds", "ACR", *(f"{r:.2f}" for r in summary.radii), "abstain"]
    body = []
    for line in lines(summary):
        signed = "+" if line.kind == "difference" else ""
        acr = _number(line.acr, f"{signed}.3f")
        if line.acr_std is not None:
            acr += f" ± {line.acr_std:.3f}"
        first = [line.method, "-" if line.sigma is None else f"{line.sigma:g}", str(line.seeds)]
        if line.kind != "measured":
            first = [f"  {line.kind}", "", ""]
        shares = [_share(value, signed) for value in line.certified]
        body.append([*first, acr, *shares, _share(line.abstained, signed)])
    return header, body


def _share(value: float | None, signed: str) -> str:
    return "" if value is None else _number(value, f"{signed}.1f")


def _number(value: float, style: str) -> str:
    text = f"{value:{style}}"
    return text.lstrip("+-") if float(text) == 0 else text  # a zero has no sign


def render(summary: Summary, style: str) -> str:
    """The report in one of the styles plain, markdown, latex, csv, json; without a last newline."""
    return {
        "plain": _plain,
        "markdown": _markdown,
        "latex": _latex,
        "csv": _csv,
        "json": _json,
    }[style](summary)


def _plain(summary: Summary) -> str:
    header, body = cells(summary)
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *body]
    ]
    return "\n".join([*rows, "", caption(summary)])


def _markdown(summary: Summary) -> str:
    header, body = cells(summary)
    rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in [header, *body]]
    rule = ["---", *("---:" for _ in header[1:])]
    table = ["| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]]
    return "\n".join([*table, "", caption(summary)])


def _latex(summary: Summary) -> str:
    header, body = cells(summary)
    titles = ["method", r"$\sigma$", *header[2:]]
    rows = [" & ".join(_latex_text(cell) for cell in row) + r" \\" for row in body]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex_text(caption(summary))}}}",
            r"\end{table}",
        ]
    )


def _latex_text(text: str) -> str:
    if text.startswith("  "):
        return r"\quad " + _latex_text(text.strip())
    for special in "\\&%$#_{}^":
        replacement = {"\\": r"\textbackslash ", "^": r"\textasciicircum "}
        text = text.replace(special, replacement.get(special, f"\\{special}"))
    return text.replace("±", r"$\pm$")


def _csv(summary: Summary) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    radii = [f"r{radius:.2f}" for radius in summary.radii]
    head = ["row", "method", "sigma", "seeds", "images", "n", "alpha", "acr", "acr_std"]
    writer.writerow([*head, "abstained", *radii])
    groups = [entry.group for entry in summary.groups]
    known = {(g.method, g.sigma): (g.setting("n"), g.setting("alpha")) for g in groups}
    for line in lines(summary):
        n, alpha = known[line.method, line.sigma]
        images = summary.images
        if line.kind == "paper":
            images, n, alpha = paper.IMAGES, paper.N, paper.ALPHA
        name = [line.kind, line.method, line.sigma, line.seeds, images, n, alpha]
        numbers = [line.acr, line.acr_std, line.abstained, *line.certified]
        writer.writerow([*name, *("" if x is None else f"{x:.6f}" for x in numbers)])
    return buffer.getvalue().rstrip("\n")


def _json(summary: Summary) -> str:
    return json.dumps(as_dict(summary), indent=2)


def as_dict(summary: Summary) -> dict[str, Any]:
    """The report as JSON-ready values."""
    settings = {key: summary.setting(key) for key in ("n", "alpha", "n0", "budget", "data")}
    report = {
        "caption": caption(summary),
        "images": summary.images,
        **settings,
        "radii": summary.radii,
        "groups": [_json_group(entry) for entry in summary.groups],
    }
    return report


def _json_group(entry: GroupSummary) -> dict[str, Any]:
    files = (str(log.path) for log in entry.group.logs)
    row = entry.paper
    return {
        "method": entry.group.method,
        "sigma": entry.group.sigma,
        "seeds": len(entry.acr),
        "cap": entry.group.cap,
        "acr": entry.acr_mean,
        "acr_std": entry.acr_std,
        "acr_of": dict(zip(files, entry.acr, strict=True)),
        "certified_accuracy": entry.certified,
        "abstained": entry.abstained,
        "paper": None
        if row is None
        else {
            "acr": row.acr,
            "acr_difference": entry.acr_mean - row.acr,
            "certified_accuracy": {f"{r:.2f}": share for r, share in row.certified.items()},
        },
    }
