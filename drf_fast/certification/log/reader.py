"""Reading a certification log, ours or a published one."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.certification.log.audit import BUDGETS, refuse_other_certificates
from drf_fast.certification.log.rows import FIELD_COLUMNS, Row, is_header, parse_rows
from drf_fast.certification.log.sidecar import decode, read_bytes, read_config, sidecar
from drf_fast.errors import InputError
from drf_fast.runtime.files import first_line

_LONGEST_HEADER = 4096  # bytes


@dataclass(frozen=True, eq=False)
class Log:
    """A log as read: arrays with one entry per image, in the order of the file.

    ``radius``, ``p_lower`` and ``seconds`` are float64, ``correct`` bool, the others int64;
    ``count``, ``n`` and ``p_lower`` are None for logs without our columns, ``config`` if there is
    no sidecar. ``parts`` are the logs that this one was joined from, by shard; ``predictions``
    marks a log of PREDICT, whose radii are all 0; ``warnings`` are sentences about corrections made
    while reading; ``name`` is the name that the user gives it.
    """

    path: Path
    config: dict[str, Any] | None
    idx: np.ndarray
    label: np.ndarray
    predict: np.ndarray
    radius: np.ndarray
    correct: np.ndarray
    seconds: np.ndarray
    count: np.ndarray | None
    n: np.ndarray | None
    p_lower: np.ndarray | None
    parts: dict[int, Path] = dataclasses.field(default_factory=dict)
    predictions: bool = False
    warnings: tuple[str, ...] = ()
    name: str | None = None

    def __len__(self) -> int:
        return len(self.idx)


def read_log(path: str | Path, content: bytes | None = None) -> Log:
    """Read a certification log, ours or a published one with six columns, or one of PREDICT.

    ``content`` is the content of the file if it was read already, from standard input for example;
    such a log has no sidecar. Columns after the known ones are ignored. If there is a sidecar, each
    certificate of ours is recomputed from its count, and one that differs is refused.

    Raises:
        InputError: missing, empty, malformed, or not what the counts certify; names the line.
    """
    path = Path(path)
    from_file = content is None
    content = read_bytes(path) if content is None else content
    if not content.strip():
        raise InputError(
            f"{path} is empty: expected a certification log with the header "
            f"{' '.join(FIELD_COLUMNS)}; certify again or leave it out"
        )
    parsed = parse_rows(path, decode(path, content))
    rows, ours = parsed.rows, parsed.ours
    config = _configuration(path) if from_file and sidecar(path).exists() else None
    if not rows and (config or {}).get("shard") is None:  # a shard may have no image
        raise InputError(
            f"{path} holds no certificates: expected at least one line below the header; "
            "certify again or leave it out"
        )
    if ours and not content.endswith(b"\n"):
        raise InputError(
            f"{path}: line {len(rows) + 1} is torn: expected a line end, got the end of the file; "
            "finish the run with --resume"
        )
    if ours and config is not None:
        _check_budget(path, config, rows)
        refuse_other_certificates(path, config, rows)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], dtype)

    label, predict = column("label", np.int64), column("predict", np.int64)
    return Log(
        path=path,
        config=config,
        idx=column("idx", np.int64),
        label=label,
        predict=predict,
        radius=column("radius", np.float64),
        correct=label == predict,
        seconds=column("seconds", np.float64),
        count=column("count", np.int64) if ours else None,
        n=column("n", np.int64) if ours else None,
        p_lower=column("p_lower", np.float64) if ours else None,
        predictions=parsed.predictions,
        warnings=parsed.warnings,
    )


def is_log(path: Path) -> bool:
    """Whether a file begins with the header of a log; False if it is unreadable."""
    return is_header(first_line(path, _LONGEST_HEADER).decode("utf-8-sig", errors="replace"))


def _configuration(path: Path) -> dict[str, Any]:
    config = read_config(path)
    try:
        json.dumps(config, allow_nan=False)
    except ValueError as error:
        raise InputError(
            f"{sidecar(path)}: expected JSON, got a number that it does not have (NaN or "
            "Infinity); restore the file that belongs to the log"
        ) from error
    return config


def _check_budget(path: Path, config: dict[str, Any], rows: list[Row]) -> None:
    """Refuse an unknown budget, and rows of a fixed budget with fewer than n samples."""
    budget = config.get("budget", "fixed")
    if budget not in BUDGETS:
        raise InputError(
            f"{sidecar(path)}: expected budget {' or '.join(BUDGETS)}, got {str(budget)[:40]!r}; "
            "restore the file that belongs to the log"
        )
    expected = config.get("n")
    if expected is None or budget != "fixed":
        return
    skipped = 0 if config.get("skip_wrong") is True else expected
    for number, row in enumerate(rows, start=2):
        if row.n not in (expected, skipped):
            raise InputError(
                f"{path}: line {number} does not fit {sidecar(path).name}: expected n = {expected} "
                f"samples, got {row.n}; restore the pair that belongs together"
            )
