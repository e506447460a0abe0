"""The tables of a sweep: one row per setting, averaged over seeds, and one row per run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast import report
from drf_fast.certification.log import Log, read_log
from drf_fast.commands.sweep.grid import SweepRun, flag, format_value, plain, plain_value
from drf_fast.commands.sweep.plan import Sweep
from drf_fast.config import run_files, training
from drf_fast.report.groups import Group
from drf_fast.report.summary import average_certified_radius, certified_accuracy
from drf_fast.report.tables import caption, draw_tables
from drf_fast.runtime.files import write_atomic, write_json
from drf_fast.runtime.text import number_of
from drf_fast.training.metrics import read_metrics


@dataclass(frozen=True, eq=False)
class Setting:
    """One point of the grid.

    Attributes:
        values: the varied fields.
        group: the logs of its seeds.
        runs: numbers of each run (seed), by name; ``None`` where a run has no such number.
    """

    values: dict[str, Any]
    group: Group
    runs: tuple[dict[str, Any], ...]

    def mean(self, name: str) -> float | None:
        """Mean over seeds."""
        found = self._numbers(name)
        return float(np.mean(found)) if found else None

    def spread(self, name: str) -> float | None:
        """Sample standard deviation over seeds; ``None`` for one."""
        found = self._numbers(name)
        return float(np.std(found, ddof=1)) if len(found) > 1 else None

    def _numbers(self, name: str) -> list[float]:
        return [run[name] for run in self.runs if run[name] is not None]


@dataclass(frozen=True, eq=False)
class Result:
    """The results of a sweep.

    Attributes:
        sweep: the sweep.
        settings: its points with at least one finished run, in the order of the grid.
        radii: radii of certified accuracy.
        note: the images, n and alpha of the numbers.
    """

    sweep: Sweep
    settings: tuple[Setting, ...]
    radii: tuple[float, ...]
    note: str


def summarize(sweep: Sweep, done: Sequence[SweepRun]) -> Result:
    """Read the logs of the finished runs.

    Raises:
        InputError: a log was damaged or replaced.
    """
    of_path = {sweep.log_of(run): run for run in done}
    whole = report.summarize([read_log(path) for path in of_path])
    points = [
        Setting(
            of_path[entry.group.logs[0].path].setting,
            entry.group,
            tuple(_numbers(sweep, of_path[log.path], log, whole.radii) for log in entry.group.logs),
        )
        for entry in whole.groups
    ]
    return Result(sweep, tuple(points), whole.radii, caption(whole))


def _numbers(sweep: Sweep, run: SweepRun, log: Log, radii: tuple[float, ...]) -> dict[str, Any]:
    epochs = read_metrics(sweep.folder / run.name)
    metrics = epochs[-1] if epochs else {}
    under_noise = metrics.get("test_accuracy_under_noise")
    return {
        "seed": run.config.seed,
        "folder": run.name,
        "acr": average_certified_radius(log),
        **dict(
            zip(map(_at, radii), (100.0 * certified_accuracy(log, radii)).tolist(), strict=True)
        ),
        "abstained": 100.0 * float(np.mean(log.predict == -1)),
        "accuracy_under_noise": None if under_noise is None else 100.0 * under_noise,
        "lambda": metrics.get("lambda"),
        "distance": metrics.get("distance"),
        "train_seconds": sum(
            (s for row in epochs if isinstance(s := row.get("seconds"), float)), 0.0
        ),
        "certify_seconds": float(log.seconds.sum()),
    }


def _at(radius: float) -> str:
    return f"r{radius:.2f}"


def names(result: Result) -> list[str]:
    """The numbers of a run that are averaged, in the order of the table."""
    shares = [_at(radius) for radius in result.radii]
    rest = ["abstained", "accuracy_under_noise", "lambda", "distance", "train_seconds",
            "certify_seconds"]  # fmt: skip
    return ["acr", *shares, *rest]


def as_text(result: Result) -> str:
    """The table as aligned text, with a note on images, n and alpha."""
    shares = [f"{radius:.2f}" for radius in result.radii]
    varied = list(result.sweep.grid)
    header = [*map(flag, varied), "seeds", "ACR", *shares, "abstain", "noisy", "lambda",
              "distance", "seconds"]  # fmt: skip
    body = []
    for point in result.settings:
        seconds = [point.mean(name) or 0.0 for name in ("train_seconds", "certify_seconds")]
        body.append(
            [
                *(format_value(point.values[field]) for field in varied),
                str(len(point.runs)),
                _cell(point, "acr", ".3f"),
                _cell(point, _at(0.0), ".1f"),
                *(_cell(point, _at(radius), ".1f", False) for radius in result.radii[1:]),
                _cell(point, "abstained", ".1f", False),
                _cell(point, "accuracy_under_noise", ".1f", False),
                _cell(point, "lambda", ".3f", False),
                _cell(point, "distance", ".3f", False),
                f"{sum(seconds):.0f}",
            ]
        )
    note = (
        f"{label(result)}. {result.note[:-1]}; column 0.00 is the clean accuracy of the smoothed "
        "classifier, noisy the base network's under one draw of the noise (all test images); "
        "lambda and distance are of the last epoch; seconds are training and certification of one "
        "run."
    )
    return draw_tables([(header, body)], note, "plain")


def label(result: Result) -> str:
    """The method, the network and the images, as text."""
    config = result.sweep.runs[0].config
    methods = {training.method_label(run.config): None for run in result.sweep.runs}
    fixed = {
        "sigma": f"sigma = {config.sigma:g}",
        "epochs": number_of(config.epochs, "epoch"),
    }
    grid = result.sweep.grid
    limited = config.train_images is not None and "train_images" not in grid
    images = f"the first {config.train_images:,} images of " if limited else ""
    network = "" if "arch" in grid else f" with {config.arch}"
    parts = [f"{', '.join(methods)}{network} on {images}{config.data}"]
    parts += [text for field, text in fixed.items() if field not in grid]
    return ", ".join(parts)


def _cell(point: Setting, name: str, style: str, spread: bool = True) -> str:
    mean, deviation = point.mean(name), point.spread(name)
    if mean is None:
        return "-"
    return f"{mean:{style}}" + (
        f" ± {deviation:{style}}" if spread and deviation is not None else ""
    )


def as_dict(result: Result) -> dict[str, Any]:
    """The summary as JSON-ready values."""
    averaged = names(result)
    return {
        "label": label(result),
        "note": result.note,
        "vary": {flag(field): values for field, values in plain(result.sweep.grid).items()},
        "seeds": result.sweep.seeds,
        "certification": result.sweep.certification,
        "radii": result.radii,
        "settings": [
            {
                "values": {flag(field): plain_value(v) for field, v in point.values.items()},
                "mean": {name: point.mean(name) for name in averaged},
                "std": {name: point.spread(name) for name in averaged},
                "runs": point.runs,
            }
            for point in result.settings
        ],
        "failed": result.sweep.failed,
    }


def as_json(result: Result) -> str:
    """The summary as JSON text."""
    return json.dumps(as_dict(result), indent=2)


def write(result: Result, folder: Path) -> None:
    """The table of settings, the table of runs, and all of it as JSON.

    Raises:
        OSError: the disk is full.
    """
    varied, averaged = list(result.sweep.grid), names(result)
    head = [flag(field) for field in varied]
    of_settings = [[*head, "seeds", *averaged, *(f"{name}_std" for name in averaged)]]
    of_runs = [[*head, "seed", "folder", *averaged]]
    for point in result.settings:
        values = [format_value(point.values[field]) for field in varied]
        means = [_exact(point.mean(name)) for name in averaged]
        spreads = [_exact(point.spread(name)) for name in averaged]
        of_settings.append([*values, str(len(point.runs)), *means, *spreads])
        for run in point.runs:
            numbers = [_exact(run[name]) for name in averaged]
            of_runs.append([*values, str(run["seed"]), run["folder"], *numbers])
    write_atomic(folder / run_files.SUMMARY_TABLE, _tsv(of_settings))
    write_atomic(folder / run_files.RUNS, _tsv(of_runs))
    write_json(folder / run_files.SUMMARY, as_dict(result))


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _tsv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(rows)
    return buffer.getvalue()
