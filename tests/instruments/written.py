"""Certification logs, written by the real writer, with hand-made rows."""

from __future__ import annotations

from pathlib import Path

from drf_fast.certification.log import COLUMNS, CertificationLog, Row

# Without sigma, which only test_certlog_audit.py needs: radii here are chosen by hand.
CONFIG = {"method": "gaussian", "n0": 100, "n": 1000, "alpha": 0.001, "seed": 0}
FIELD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
OURS = "\t".join(COLUMNS) + "\n"


def row(idx: int, **changes) -> Row:
    values = {
        "idx": idx,
        "label": 3,
        "predict": 3,
        "radius": 0.5 + idx,
        "seconds": 1.5,
        "count": 990,
        "n": 1000,
        "p_lower": 0.98,
    }
    return Row(**(values | changes))


def write_log(path: Path, rows: list[Row], config: dict | None = None) -> Path:
    with CertificationLog.create(path, CONFIG if config is None else config) as log:
        for entry in rows:
            log.append(entry)
    return path
