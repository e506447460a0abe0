"""Saving, validating and restoring the state of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from drf_fast.backends.environment import environment
from drf_fast.balls import SoftBall
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config import run_files
from drf_fast.config.training import method_label
from drf_fast.config.values import to_dict
from drf_fast.data.folders import NAMES as IMAGE_FOLDERS
from drf_fast.errors import InputError
from drf_fast.runtime import processes
from drf_fast.runtime.files import absolute, write_json
from drf_fast.runtime.text import message_of
from drf_fast.training.run import Run, Totals, announce


def description(run: Run) -> dict[str, Any]:
    """The settings and hashes that are recorded with the network."""
    files = {"init_sha256": run.init_sha256, "teacher_sha256": run.teacher_sha256}
    left_out = {"left_out": dict(run.left_out)} if run.left_out else {}
    place = None if run.config.data_dir is None else absolute(run.config.data_dir)
    return {
        **to_dict(run.config),
        "data_dir": place,
        **{name: digest for name, digest in files.items() if digest is not None},
        **left_out,
        "method_label": method_label(run.config),
        "fingerprint": run.train_set.fingerprint,
    }


def record(run: Run) -> None:
    """Write ``config.json``: settings, measured choices, what was left out, versions."""
    recorded = {
        **description(run),
        "channels": run.train_set.image_shape[0],  # of grey class folders, which may be read as 3
        "environment": environment(run.device),
    }
    write_json(run.folder / run_files.SETTINGS, recorded)
    run.recorded = dict(run.left_out)


def save(run: Run) -> None:
    """Write the checkpoint; process 0 does.

    Raises:
        InputError, OSError: the folder cannot be written; an older checkpoint stays whole.
    """
    if processes.rank() > 0:
        return
    content = {
        "model": run.model.state_dict(),
        "arch": run.config.arch,
        "num_classes": run.train_set.num_classes,
        "image_shape": list(run.train_set.image_shape),
        "config": description(run),
        "optimizer": run.optimizer.state_dict(),
        "epoch": run.epoch,
        "batch": run.batch,
        "step": run.step,
        "totals": {
            "sums": run.totals.sums,
            "images": run.totals.images,
            "seconds": run.totals.seconds,
        },
        "processes": processes.count(),
    }
    if run.train_set.name in IMAGE_FOLDERS:
        content["class_names"] = list(run.train_set.class_names)
    if isinstance(run.ball, SoftBall):
        content["ball"] = run.ball.state_dict()
    checkpoint.save(run.folder / run_files.CHECKPOINT, content)
    if run.recorded != run.left_out:  # for example, a CUDA graph could not be captured
        record(run)


def read(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in a run folder; None if there is none yet.

    Raises:
        InputError: not a checkpoint, or a damaged one.
    """
    path = folder / run_files.CHECKPOINT
    return checkpoint.load(path) if path.exists() else None


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Restore the state ``saved``.

    Raises:
        InputError: the checkpoint has no valid training state, or does not fit the network.
    """
    wrong = _invalid_parts(saved, run.optimizer)
    if wrong:
        raise InputError(
            f"cannot resume {run.folder}: expected a checkpoint with the state of a training run, "
            f"got one whose {', '.join(wrong)} cannot be used; start again with --force"
        )
    try:
        run.model.load_state_dict(saved["model"])
        # Momentum and the like are those of the settings, which are equal, not of the file.
        groups = run.optimizer.state_dict()["param_groups"]
        state = {"state": saved["optimizer"]["state"], "param_groups": groups}
        run.optimizer.load_state_dict(state)
        if isinstance(run.ball, SoftBall):
            run.ball.load_state_dict(saved["ball"])
        run.epoch, run.batch, run.step = (int(saved[name]) for name in ("epoch", "batch", "step"))
        if "totals" in saved:
            totals = saved["totals"]
            sums = run.totals.sums.copy_(totals["sums"])
            run.totals = Totals(sums, int(totals["images"]), float(totals["seconds"]))
        # Forms that failed then are not tried again.
        run.left_out = {**saved["config"].get("left_out", {}), **run.left_out}
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"cannot resume {run.folder}: expected a checkpoint with the state of a training run, "
            f"got {type(error).__name__} ({message_of(error, 200)}); start again with --force"
        ) from error
    announce(f"resuming {run.folder} at epoch {run.epoch}, step {run.step}")
    if saved.get("processes", 1) != processes.count():
        announce(
            f"{processes.count()} processes go on with a run of {saved.get('processes', 1)}: the "
            "result is the same up to rounding, except that batch normalisation sees the images of "
            "each process alone"
        )


_MAX_COUNT = 2**63


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _sums(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.float64
        and value.shape == (3,)
        and bool(value.isfinite().all())
    )


def _totals(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _sums(value.get("sums"))
        and _count(value.get("images"))
        and isinstance(value.get("seconds"), (int, float))
        and 0 <= value["seconds"] < math.inf
    )


_PARTS: dict[str, Callable[[Any], bool]] = {
    "epoch": _count,
    "batch": _count,
    "step": _count,
    "totals": _totals,
    "processes": lambda value: _count(value) and value > 0,
}
_OPTIONAL = {"totals", "processes"}  # checkpoints of early versions lack them


def _invalid_parts(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the parts of a training state that are missing or invalid for ``optimizer``."""
    wrong = [
        name
        for name, is_valid in _PARTS.items()
        if not (is_valid(saved[name]) if name in saved else name in _OPTIONAL)
    ]
    return wrong if _fits(saved.get("optimizer"), optimizer) else ["optimizer", *wrong]


def _fits(state: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a state has the optimizer's parameters, in its groups, with finite buffers."""
    groups, entries = (_entry(state, name) for name in ("param_groups", "state"))
    if not isinstance(groups, list) or not isinstance(entries, dict):
        return False
    numbers = [_entry(group, "params") for group in groups]
    # Compared as text: a list may hold anything, tensors for example.
    if repr(numbers) != repr([group["params"] for group in optimizer.state_dict()["param_groups"]]):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return all(
        _count(key)
        and key < len(parameters)
        and isinstance(entry, dict)
        and _is_buffer_of(parameters[key], entry.get("momentum_buffer"))
        for key, entry in entries.items()
    )


def _entry(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _is_buffer_of(parameter: torch.Tensor, buffer: Any) -> bool:
    if buffer is None:
        return True
    return (
        isinstance(buffer, torch.Tensor)
        and buffer.dtype == parameter.dtype
        and buffer.shape == parameter.shape
        and bool(buffer.isfinite().all())
    )
