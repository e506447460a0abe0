"""Validation of a training state read from a file, before a run is resumed with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

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


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _optimizer(value: Any) -> bool:
    """Whether it is a state of ``torch.optim.SGD``: hyperparameters are numbers, buffers finite."""
    if not isinstance(value, dict):
        return False
    groups, state = value.get("param_groups"), value.get("state")
    if not isinstance(groups, list) or not groups or not isinstance(state, dict):
        return False
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return False
        if not all(_number(group.get(name)) for name in ("lr", "momentum", "weight_decay")):
            return False
        if not isinstance(group.get("nesterov"), bool):
            return False
    for entry in state.values():
        buffer = entry.get("momentum_buffer") if isinstance(entry, dict) else 0
        if buffer is not None and not (
            isinstance(buffer, torch.Tensor) and bool(buffer.isfinite().all())
        ):
            return False
    return True


_PARTS: dict[str, Callable[[Any], bool]] = {
    "optimizer": _optimizer,
    "epoch": _count,
    "batch": _count,
    "step": _count,
    "totals": _totals,
    "processes": lambda value: _count(value) and value > 0,
}
_OPTIONAL = {"totals", "processes"}  # checkpoints of early versions lack them


def invalid_parts(saved: dict[str, Any]) -> list[str]:
    """The names of the parts of a training state that are missing or invalid."""
    return [
        name
        for name, is_valid in _PARTS.items()
        if not (is_valid(saved[name]) if name in saved else name in _OPTIONAL)
    ]
