"""The predicted cost of a sweep's runs, measured on a few steps, and choices shared by its runs.

Runs that differ only in numbers (lambda0, sigma, learning rates, seed ...) cost the same, so one of
them is measured. The fastest memory formats and batch size are then used by all of them, and saved
in the folder of the sweep, so that interruptions do not change them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from drf_fast import data
from drf_fast.certification import engine, loading, plan
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands import certify
from drf_fast.commands.sweep.plan import Sweep
from drf_fast.config import run_files, tags
from drf_fast.config.options import TrainConfig
from drf_fast.config.tags import Role, Tag
from drf_fast.config.training import steps_of_an_epoch
from drf_fast.config.values import to_dict
from drf_fast.runtime import machine
from drf_fast.runtime.progress import say
from drf_fast.training import loop, teacher
from drf_fast.training.prepare import prepare

# Settings that do not change the cost of a step. Others, new ones for example, do.
_FREE = frozenset(
    tags.having(
        TrainConfig,
        Tag.SAME_COST, Role.SOURCE, Role.PLACE, Role.CALL, Role.LIMIT, Role.CERTIFICATES,
    )
)  # fmt: skip
_ENOUGH_SECONDS, _MORE_STEPS = 0.5, 10
_KEYS = {"memory_format", "certify_memory_format", "batch_size", "step_seconds", "epoch_steps",
         "vote_seconds", "epoch_seconds", "certify_seconds"}  # fmt: skip


def measure(sweep: Sweep, download: bool = True) -> None:
    """Measure one run of each cost that was not measured before, and record the result.

    Raises:
        InputError: its data or settings cannot be used, or its data would have to be downloaded
            without ``download``.
    """
    for run in sweep.runs:
        key = cost_key(run.config)
        if sweep.measured.get(key, {}).keys() == _KEYS:
            continue
        say(f"trying a few steps: {run.label}")
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                if not download:
                    _refuse_absent_data(run.config)
                sweep.measured[key] = _try(sweep, run.config)
        except RuntimeError as error:  # RunError, too
            say(f"warning: the trial failed, so its time is unknown ({error})")
            sweep.measured.pop(key, None)


def cost_key(config: TrainConfig) -> str:
    """A key of the settings that determine the cost of a step."""
    values = {key: value for key, value in to_dict(config).items() if key not in _FREE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def seconds(sweep: Sweep, config: TrainConfig) -> float | None:
    """Predicted time of a run; ``None`` if it could not be measured."""
    found = sweep.measured.get(cost_key(config))
    if found is None:
        return None
    steps = config.epochs * found["epoch_steps"]
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    epochs = steps / found["epoch_steps"]
    training = steps * found["step_seconds"] + epochs * found["epoch_seconds"]
    return config.catrs_n * found["vote_seconds"] + training + found["certify_seconds"]


def with_measured(sweep: Sweep, config: TrainConfig) -> TrainConfig:
    """``config`` with the measured layout in place of "auto"."""
    found = sweep.measured.get(cost_key(config))
    if found is None or config.memory_format != "auto":
        return config
    return dataclasses.replace(config, memory_format=found["memory_format"])


def _refuse_absent_data(config: TrainConfig) -> None:
    for split in ("train", "test"):
        data.load(config.data, split, data_dir=config.data_dir, download=False)


@machine.same_threads()
def _try(sweep: Sweep, config: TrainConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # A learning rate so low that no setting diverges within these steps, and one vote of the
        # teacher on each image: those of a recipe take hours.
        config = dataclasses.replace(config, lr=1e-6, max_steps=1, certify_images=0, catrs_n=1)
        first = Path(folder, "first")  # warms up
        loop.train(dataclasses.replace(config, out=first))
        saved = checkpoint.load(first / run_files.CHECKPOINT)
        config = dataclasses.replace(config, memory_format=saved["config"]["memory_format"])
        step_seconds = _step_seconds(config, Path(folder))
        vote_seconds = teacher.attach_placeholder(prepare(config, Path(folder, "votes")))
        images = len(data.load(config.data, "train", data_dir=config.data_dir))
        images = min(images, config.train_images or images)
        test_images = certify.test_images(config, first)
        planned, loaded = _certification(sweep, first, config, test_images)
    return {
        "memory_format": config.memory_format,
        "certify_memory_format": loaded.classifier.choices["memory_format"],
        "batch_size": loaded.batch_size,
        "step_seconds": step_seconds,
        "vote_seconds": vote_seconds,
        "epoch_steps": steps_of_an_epoch(config, images),
        "epoch_seconds": test_images / planned.rows_per_second,
        "certify_seconds": planned.seconds,
    }


def _step_seconds(config: TrainConfig, folder: Path) -> float:
    """The time of a step, from runs of different length, to exclude the start-up time."""
    one = _timed(config, folder / "one", 1)
    two = _timed(config, folder / "two", 2)
    if two[0] - one[0] < _ENOUGH_SECONDS:
        two = _timed(config, folder / "more", 1 + _MORE_STEPS)
    more = two[1] - one[1]
    return max(two[0] - one[0], 1e-4) / more if more > 0 else one[0]


def _timed(config: TrainConfig, folder: Path, steps: int) -> tuple[float, int]:
    start = time.perf_counter()
    loop.train(dataclasses.replace(config, out=folder, max_steps=steps))
    taken = time.perf_counter() - start
    return taken, checkpoint.load(folder / run_files.CHECKPOINT)["step"]


def _certification(
    sweep: Sweep, folder: Path, config: TrainConfig, test_images: int
) -> tuple[plan.Plan, loading.Loaded]:
    terms = sweep.certify_config(folder, config, test_images)
    loaded = loading.load(terms)
    work = engine.Work(
        classifier=loaded.classifier,
        images=loaded.images,
        indices=loaded.indices,
        device=loaded.device,
        n0=terms.n0,
        rule=certify.rule_of(terms, loaded.classifier.drawn_sigma),
        batch_size=loaded.batch_size,
    )
    return plan.make(work), loaded
