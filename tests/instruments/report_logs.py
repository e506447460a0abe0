"""Logs of ours and of the field, whose certificates are chosen by hand, for tests of the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drf_fast.certification.log import CertificationLog, Row, read_log
from drf_fast.commands import report
from drf_fast.config.look import ReportConfig
from drf_fast.report import summarize

CONFIG = {
    "method": "gaussian",
    "sigma": 0.5,
    "n0": 100,
    "n": 1000,
    "alpha": 0.001,
    "budget": "fixed",
    "data": "mnist-mini",
    "split": "test",
    "fingerprint": "aa",
}
HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
# (label, predict, radius): right, right, wrong, abstained, right with radius exactly 0.25
FIRST = [(3, 3, 1.0), (1, 1, 0.5), (2, 5, 0.75), (4, -1, 0.0), (0, 0, 0.25)]
SECOND = [(3, 3, 0.7625), (1, -1, 0.0), (2, 2, 0.125), (4, -1, 0.0), (0, 0, 0.0)]


def run(logs: Iterable[str | Path], **settings: Any) -> int:
    """``drf-fast report`` on these logs, without the choice of a fitting layout."""
    return report.run(ReportConfig(tuple(map(str, logs)), **settings))


def ours(path: Path, certificates=FIRST, first_idx: int = 0, **config) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in (CONFIG | config).items() if value is not None}
    with CertificationLog.create(path, settings) as log:
        for idx, (label, predict, radius) in enumerate(certificates, start=first_idx):
            log.append(Row(idx, label, predict, radius, 1.0, 900, settings.get("n", 1000), 0.5))
    return path


def published(path: Path, radius: float = 0.3, time: str = "0:00:01") -> Path:
    """Four certificates of one radius, as the published code writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{i}\t3\t3\t{radius}\t1\t{time}\n" for i in range(4)))
    return path


def field(path: Path, certificates=FIRST) -> Path:
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for idx, (label, predict, radius) in enumerate(certificates):
        lines.append(f"{idx}\t{label}\t{predict}\t{radius}\t{int(label == predict)}\t0:00:00.5")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def summary_of(*paths: Path, **options):
    return summarize([read_log(path) for path in paths], **options)
