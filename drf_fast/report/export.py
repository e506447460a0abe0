"""A report as JSON, with everything, or as CSV, the numbers of the tables in full precision."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from drf_fast.certification.log import Log
from drf_fast.report import paper
from drf_fast.report.attacks import AttackCurve, as_dicts
from drf_fast.report.compare import RESAMPLES, Comparison, none_for_nan
from drf_fast.report.groups import skips_wrong
from drf_fast.report.summary import (
    QUANTILES,
    GroupSummary,
    Summary,
    average_certified_radius,
    certified_accuracy,
)
from drf_fast.report.tables import ENVELOPE, caption, lines, radius_label


def as_csv(summary: Summary, envelope: bool = False) -> str:
    """One line per row of the table, including intervals; without a final newline."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    levels = [f"p{100 * q:g}" for q in QUANTILES]
    radii = [f"r{radius_label(radius)}" for radius in summary.radii]
    head = ["row", "method", "variant", "sigma", "seeds", "images", "n", "alpha"]
    numbers = ["acr", "acr_std", "abstained", "largest_radius", "at_largest", *levels]
    writer.writerow([*head, *numbers, *radii])
    entries = {id(entry.group): entry for entry in summary.groups}
    for line in lines(summary, intervals=True):
        group, entry = line.group, entries[id(line.group)]
        terms = [summary.images, group.setting("n"), group.setting("alpha")]
        if line.kind == "paper":
            terms = [paper.IMAGES, paper.N, paper.ALPHA]
        of_group: list[float | None] = [group.cap, entry.at_cap, *entry.p_quantiles]
        if line.kind != "measured":
            of_group = [None] * len(of_group)
        name = [line.kind, group.method, group.variant, group.sigma, line.seeds, *terms]
        values = [line.acr, line.acr_std, line.abstained, *of_group, *line.certified]
        writer.writerow([*name, *("" if x is None else f"{x:.6f}" for x in values)])
    if envelope:
        empty = [""] * (len(head) - 2 + len(numbers))
        writer.writerow(["envelope", ENVELOPE, *empty, *(f"{x:.6f}" for x, _ in summary.envelope)])
    return buffer.getvalue().rstrip("\n")


def as_json(summary: Summary, envelope: bool = False, attacks: Sequence[AttackCurve] = ()) -> str:
    """All of the report, including attacks if there are any."""
    attacked = {"attacks": as_dicts(attacks)} if attacks else {}
    return json.dumps({**as_dict(summary, envelope), **attacked}, indent=2)


def as_dict(summary: Summary, envelope: bool = False) -> dict[str, Any]:
    """The report as JSON-ready values."""
    settings = {key: summary.setting(key) for key in ("n", "alpha", "n0", "budget", "data")}
    settings["sound"] = bool(summary.setting("sound"))
    return {
        "caption": caption(summary),
        "images": summary.images,
        **({} if summary.of_logs is None else {"images_of_logs": summary.of_logs}),
        **settings,
        "radii": summary.radii,
        "missing": [
            {
                "log": str(lack.path),
                "shards": lack.shards,
                "images": None if lack.images is None else lack.images.tolist(),
            }
            for lack in summary.missing
        ],
        "predictions": summary.predictions,
        "groups": [_group(entry, summary) for entry in summary.groups],
        **({"envelope": _envelope(summary)} if envelope else {}),
    }


def _envelope(summary: Summary) -> dict[str, Any]:
    return {
        "certified_accuracy": [share for share, _ in summary.envelope],
        "of": [
            {"method": entry.group.name, "sigma": entry.group.sigma}
            for _, entry in summary.envelope
        ],
    }


def _group(entry: GroupSummary, summary: Summary) -> dict[str, Any]:
    group, row, certifies = entry.group, entry.paper, not summary.predictions
    levels = (f"{q:g}" for q in QUANTILES)
    return {
        "method": group.method,
        "variant": group.variant,
        "sigma": group.sigma,
        "seeds": len(entry.acr),
        "cap": group.cap,
        "at_cap": entry.at_cap,
        "acr": entry.acr_mean if certifies else None,
        "acr_std": entry.acr_std if certifies else None,
        "acr_of": {
            str(log.path): acr if certifies else None
            for log, acr in zip(group.logs, entry.acr, strict=True)
        },
        "certified_accuracy": entry.certified,
        "certified_accuracy_lower": entry.lower,
        "certified_accuracy_upper": entry.upper,
        "abstained": entry.abstained,
        "p_lower_quantiles": dict(zip(levels, entry.p_quantiles, strict=True)),
        "logs": [_log(log, summary.radii) for log in group.logs],
        "comparison": None if entry.comparison is None else _comparison(entry.comparison),
        "paper": None
        if row is None
        else {
            "acr": row.acr,
            "acr_difference": entry.acr_mean - row.acr,
            "certified_accuracy": {f"{r:.2f}": share for r, share in row.certified.items()},
        },
    }


def _log(log: Log, radii: tuple[float, ...]) -> dict[str, Any]:
    return {
        "files": [str(path) for path in log.parts.values()] or [str(log.path)],
        "acr": None if log.predictions else average_certified_radius(log),
        "certified_accuracy": (100.0 * certified_accuracy(log, radii)).tolist(),
        "abstained": None if skips_wrong(log) else 100.0 * float(np.mean(log.predict == -1)),
    }


def _comparison(found: Comparison) -> dict[str, Any]:
    def named(values: np.ndarray) -> dict[str, Any]:
        acr, *certified, abstained = none_for_nan(values)
        return {"acr": acr, "certified_accuracy": certified, "abstained": abstained}

    return {
        "minus": found.baseline.name,
        "minus_sigma": found.baseline.sigma,
        "resamples": RESAMPLES,
        "difference": named(found.difference),
        "lower": named(found.lower),
        "upper": named(found.upper),
    }
