"""Removing what wrappers, trainers and averaging add to the names of a state dict.

The state dict is under a known key, or the only one in the file. ``nn.DataParallel`` inserts
"module." and ``torch.compile`` "_orig_mod."; a Lightning module has its network under "model.",
"net." or "backbone."; ``AveragedModel`` has a counter "n_averaged" beside "module."; a normalising
first layer is "normalizer." beside the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drf_fast.errors import InputError

State = dict[str, torch.Tensor]

# Keys of a state dict in a file; averages over training are taken only if there is no other.
HOLDERS = ("state_dict", "net", "model_state_dict", "model")
_MORE_HOLDERS = (
    "module", "network", "params", "classifier", "ema_state_dict", "state_dict_ema", "model_ema",
    "ema_model", "ema", "params_ema", "averaged_model", "swa_model", "shadow",
)  # fmt: skip
_WRAPPERS = {"module", "_orig_mod"}
# Of torch.optim.swa_utils.AveragedModel, and of the profiler thop in every module.
_COUNTERS = {"n_averaged", "total_ops", "total_params"}
_NETWORKS = (
    "model", "net", "network", "backbone", "classifier", "base_model", "base_classifier",
    "ema_model", "model_ema", "ema", "averaged_model", "swa_model",
)  # fmt: skip
_LAYERS = (
    "normalizer", "normalize", "normalize_layer", "norm_layer", "normalization", "norm",
    "preprocess",
)  # fmt: skip
# Parts beside the network that are no part of it: weights of classes, counters of metrics.
_BESIDE = re.compile(r"(.*_)?(criterion|loss|metrics?|acc|accuracy)(_.*)?")
_DEPTH = 3


def state_dict(content: Any, path: Path) -> tuple[State, list[str]]:
    """The state dict under a known key, or ``content`` itself, or the only one in the file.

    Numbers, texts and the like between the tensors are left out.

    Returns:
        The state dict, and a sentence if there are others beside it.

    Raises:
        InputError: there is none, or there are several, all under unknown keys.
    """
    networks = _networks(content, _DEPTH, set())
    found = _find(content, _DEPTH, set())
    if found is not None:
        key, state = found
        others = ", ".join(name for name in networks if key and name != key)
        note = f"{path.name} holds {others} beside {key}: read {key} alone"
        return state, [note] if others else []
    if len(networks) == 1:
        return next(iter(networks.values())), []
    if networks:
        raise InputError(
            f"{path} holds several networks: expected one, got {', '.join(networks)}; save the "
            "state dict of one of them alone"
        )
    got = type(content).__name__
    if isinstance(content, Mapping):
        got = f"the keys {', '.join(map(str, list(content)[:6])) or '(none)'}"
    raise InputError(
        f"{path} is no drf_fast checkpoint and holds no state dict: expected tensors by name, "
        f"alone or under {', '.join(HOLDERS)}, got {got}; pass another file"
    )


def _find(content: Any, depth: int, seen: set[int]) -> tuple[str, State] | None:
    """The first state dict under a known key, with its key, or ``content``, with no key.

    ``seen`` are the ids of what was searched: a file may hold a dict that holds itself.
    """
    if not isinstance(content, Mapping) or id(content) in seen:
        return None
    seen.add(id(content))
    for key in (*HOLDERS, *_MORE_HOLDERS):
        found = _find(content.get(key), depth - 1, seen) if depth >= 0 else None
        if found is not None:
            return f"{key}.{found[0]}".rstrip("."), found[1]
    state = _as_state(content)
    return None if state is None else ("", state)


def _networks(content: Any, depth: int, seen: set[int]) -> dict[str, State]:
    """All state dicts with weights under the keys of ``content``, but those of optimizers.

    ``seen`` as in ``_find``.
    """
    found: dict[str, State] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str) or not isinstance(value, Mapping) or key.startswith("optim"):
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        state = _as_state(value)
        if state is not None and _has_weights(state):
            found[key] = state
        elif depth:
            inner = _networks(value, depth - 1, seen)
            found.update({f"{key}.{name}": state for name, state in inner.items()})
    return found


def _as_state(content: Mapping[Any, Any]) -> State | None:
    """The tensors of ``content`` by name, if nothing else is in it, or nothing else with weights.

    None if they are not the weights of a network.
    """
    state = _tensors(content)
    if len(state) == len(content):
        return state or None
    others = [value for value in content.values() if isinstance(value, Mapping)]
    names = all(isinstance(key, str) for key in content)
    alone = names and not any(_has_weights(_tensors(other)) for other in others)
    return state if alone and _has_weights(state) else None


def _tensors(content: Mapping[Any, Any]) -> State:
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }


def _has_weights(state: State) -> bool:
    """Whether there is a matrix in it, as in every network: other tensors may be of anything."""
    return any(value.is_floating_point() and value.dim() > 1 for value in state.values())


def unwrapped(state: State, path: Path) -> State:
    """``state`` without the parts of names that wrappers of the network add, at any level.

    Raises:
        InputError: two tensors get the same name.
    """
    weights = {key: value for key, value in state.items() if key.split(".")[-1] not in _COUNTERS}
    plain = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS): value
        for key, value in weights.items()
    }
    if len(plain) < len(weights):
        raise InputError(
            f"{path} holds several tensors of one name: expected one network, got names that "
            "differ only by 'module.'; save the state dict of one network"
        )
    return plain


def canonical(state: State, path: Path) -> tuple[State, list[str]]:
    """``state`` with the network's own names, prefixed by "0." and "1." if it has a first layer.

    Returns:
        The state dict, and sentences about what was left out.

    Raises:
        InputError: two tensors get the same name.
    """
    state, notes = unwrapped(state, path), []
    for _ in range(_DEPTH):
        groups = _groups(state)
        network = next((name for name in _NETWORKS if name in groups), None)
        if network is None:
            break
        others = [name for name in groups if name != network]
        layer = next((name for name in others if name in _LAYERS), None)
        dropped = [name for name in others if name != layer]
        if any(
            _BESIDE.fullmatch(name) is None and not _is_copy(groups[name], groups[network])
            for name in dropped
        ):
            break  # it may be a part of the network
        if dropped:
            notes.append(
                f"{path.name} holds {', '.join(dropped)} beside {network}: read {network} alone"
            )
        if layer is None:
            state = groups[network]
            continue
        inner, more = canonical(groups[network], path)
        state = {f"0.{key}": value for key, value in groups[layer].items()}
        return {**state, **{f"1.{key}": value for key, value in inner.items()}}, notes + more
    return state, notes


def _groups(state: State) -> dict[str, State]:
    groups: dict[str, State] = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        groups.setdefault(first, {})[rest] = value
    return groups


def _is_copy(other: State, network: State) -> bool:
    """Whether ``other`` is an average of ``network`` over training, and no part of it."""
    return other.keys() == network.keys()
