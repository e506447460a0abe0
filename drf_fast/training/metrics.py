"""Metrics of a training run: metrics.jsonl, TensorBoard events and a line for the user."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from drf_fast.config import run_files
from drf_fast.runtime.files import read_regular, write_atomic
from drf_fast.runtime.progress import say
from drf_fast.training.events import Events


def last_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of the last complete epoch of a run; empty if there is none."""
    return next(reversed(read_metrics(folder)), {})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl up to the first damaged one; none if it is missing."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):  # an InputError is a ValueError, too
        for line in read_regular(folder / run_files.METRICS).decode().splitlines():
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                break
            rows.append(row)
    return rows


class Metrics:
    """One JSON line per epoch in metrics.jsonl, and the same as TensorBoard events.

    Args:
        folder: of the run.
        epochs_done: number of epochs that the run has saved.
        epochs: total number of epochs.
    """

    def __init__(self, folder: Path, epochs_done: int, epochs: int) -> None:
        self._path, self._epochs = folder / run_files.METRICS, epochs
        # An epoch that was logged but not saved is trained again.
        kept = [row for row in read_metrics(folder) if row["epoch"] <= epochs_done]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = Events(folder / run_files.EVENTS, purge_step=epochs_done + 1)

    def write(self, metrics: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that counts this epoch as done
        self._events.write(metrics["epoch"], {k: v for k, v in metrics.items() if k != "epoch"})
        text = f"epoch {metrics['epoch']}/{self._epochs}: loss {metrics['loss']:.4f}, "
        text += f"test accuracy under noise {100 * metrics['test_accuracy_under_noise']:.1f} %"
        if "distance" in metrics:
            text += f", distance {metrics['distance']:.3f}"
        if "lambda" in metrics:
            text += f", lambda {metrics['lambda']:.3f}"
        say(text + f", {metrics['images_per_second']:,.0f} images/s")

    def close(self) -> None:
        self._events.close()
