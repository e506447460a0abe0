"""``drf-fast train --dry-run``: the resolved settings, as TOML, and the time they would take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from drf_fast.config import tags
from drf_fast.config.options import TrainConfig
from drf_fast.config.tags import Role
from drf_fast.config.training import steps_of_an_epoch, without_effect
from drf_fast.config.values import to_dict
from drf_fast.runtime import processes
from drf_fast.runtime.text import duration, number_of
from drf_fast.training import schedule
from drf_fast.training.methods.common import Batch
from drf_fast.training.run import Run
from drf_fast.training.step import one_step

_SECONDS, _MAX_STEPS = 3.0, 20  # limits of the measurement
_NOT_SETTINGS = frozenset(tags.having(TrainConfig, Role.SOURCE, Role.CALL))


def show_settings(config: TrainConfig) -> None:
    """Print the settings before anything is measured, which takes long for a large network.

    Without those that have no effect: ``--config`` refuses them. JSON is printed as a whole, by
    ``show``.
    """
    if processes.rank() > 0 or config.json:
        return
    ignored = without_effect(config)
    lines = (
        _toml(key, value)
        for key, value in _settings(config).items()
        if value is not None and key not in ignored
    )
    print("\n".join(lines), flush=True)


def show(
    run: Run, batches: Iterator[Batch], evaluate: Callable[[Run], float], before: float = 0.0
) -> None:
    """Print the predicted time; trains ``run`` for a few steps to measure it.

    ``before`` are the seconds that pass before the first step.
    """
    config = run.config
    steps = steps_of_an_epoch(config, len(run.train_set), processes.count())
    done = run.epoch * steps + run.batch
    left = config.epochs * steps - done
    if config.max_steps is not None:
        left = min(left, config.max_steps - done)
    step = _seconds_of_a_step(run, batches)
    started = time.perf_counter()
    evaluate(run)
    test = time.perf_counter() - started
    if processes.rank() > 0:
        return
    total = before + max(0, left) * step + (config.epochs - run.epoch) * test
    predicted = {"steps": left, "seconds_per_step": step, "seconds": total}
    if config.json:
        print(json.dumps({"settings": _settings(config), "predicted": predicted}, indent=2))
        return
    votes = f"{duration(before)} of smoothed predictions, " if before else ""
    print(
        f"\n# predicted: {votes}{number_of(left, 'step')} of {1000 * step:.0f} ms and "
        f"{number_of(config.epochs - run.epoch, 'test')} of {test:.1f} s on {run.device} in "
        f"{config.precision}, {config.memory_format} make {duration(total)}, certificates excepted"
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in _NOT_SETTINGS}


def _seconds_of_a_step(run: Run, batches: Iterator[Batch]) -> float:
    """Median time of a few steps, without the first."""
    times: list[float] = []
    run.model.train()
    for batch in batches:
        started = time.perf_counter()
        one_step(run, batch, schedule.options(run.config, run.epoch))
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        times.append(time.perf_counter() - started)
        # Process 0 decides, since all processes have to take the same steps.
        if processes.broadcast(sum(times[1:]) >= _SECONDS or len(times) > _MAX_STEPS):
            break
    later = times[1:] or times
    return sorted(later)[len(later) // 2] if later else 0.0


def _toml(key: str, value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    # JSON's strings, numbers, booleans and lists are TOML's, but for escapes of rare characters.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"
