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


_PARTS: dict[str, Callable[[Any], bool]] = {
    "epoch": _count,
    "batch": _count,
    "step": _count,
    "totals": _totals,
    "processes": lambda value: _count(value) and value > 0,
}
_OPTIONAL = {"totals", "processes"}  # checkpoints of early versions lack them


def invalid_parts(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
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
