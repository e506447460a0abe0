"""Weights of any origin, put into a network that is given."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drf_fast.checkpoints import first_layer, names
from drf_fast.checkpoints.names import State
from drf_fast.errors import InputError
from drf_fast.models.normalize import Normalize

COUNTER = "num_batches_tracked"  # absent before torch 0.4.1, and without effect in eval mode

_OR_CODE = ", or name the code of another network with --arch package.module:factory"


@dataclass(frozen=True)
class Fit:
    """How the weights of a file fit a network.

    Attributes:
        weights: by the network's names.
        layer: the normalising first layer that the file has before the network, if it says one.
        has_layer: whether it has one at all: some keep their constants to themselves.
        notes: sentences for the user.
    """

    weights: State
    layer: Normalize | None
    has_layer: bool
    notes: list[str]


def load_into(network: nn.Module, content: Any, path: Path, what: str) -> Fit:
    """Put the weights in ``content``, as ``tensorfile.read`` returned it, into ``network``.

    Names are tried as they are, without what wrappers put before them, and without a first part
    that all have; what fits all of the network's names and shapes is what was meant.

    Args:
        network: the network, without a normalising first layer of ours.
        content: a state dict, alone or among other things.
        path: where it came from, for messages.
        what: the network's name, for messages.

    Raises:
        InputError: no state dict, one that does not fit (names the keys that differ), or weights
            that are no finite numbers.
    """
    network = getattr(network, "_orig_mod", network)
    wanted = network.state_dict()
    found = [_checked(fit, wanted) for fit in _readings(content, path)]
    fit, differences = min(found, key=lambda pair: sum(map(len, pair[1].values())))
    if differences:
        raise InputError(
            f"the weights in {path} do not fit {what}: {list_differences(differences)}; pass the "
            "checkpoint of this network, or the network of this checkpoint"
        )
    rounded = set()
    for key, value in fit.weights.items():
        check_weights(key, value, path)
        if value.dtype == torch.float64 and wanted[key].dtype != torch.float64:
            rounded.add(value.dtype)
    network.load_state_dict(fit.weights, strict=False)
    notes = fit.notes + [f"{path.name} holds weights of {dtype}: rounded" for dtype in rounded]
    return Fit(fit.weights, fit.layer, fit.has_layer, notes)


def check_weights(key: str, value: torch.Tensor, path: Path, floats: bool = False) -> None:
    """Refuse what are no weights.

    Args:
        key: the tensor's name.
        value: the tensor.
        path: where it came from, for messages.
        floats: whether integers, which some networks have in their buffers, are none.

    Raises:
        InputError: a tensor that is sparse, on no device, that overlaps itself, or not finite.
    """
    where = f"cannot use {key} in {path}: expected"
    dense = value.layout == torch.strided and value.device.type == "cpu"
    if not dense or (floats and not value.is_floating_point()):
        raise InputError(
            f"{where} dense {'floating-point ' if floats else ''}weights, got {value.dtype} "
            f"({value.layout}, {value.device}); save it as float32{_OR_CODE if floats else ''}"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{where} {value.numel()} values, got fewer that its strides repeat; save it contiguous"
        )
    if not value.isfinite().all():
        raise InputError(
            f"{where} finite weights, got NaN or infinity; its training diverged or the file is "
            "damaged"
        )


def _readings(content: Any, path: Path) -> list[Fit]:
    """What the names may mean, the plainest first."""
    state = names.unwrapped(names.state_dict(content, path), path)
    readings = [Fit(state, None, False, [])]
    inner, notes = names.canonical(state, path)
    layer, has_layer = None, False
    with contextlib.suppress(InputError):  # layers "0" and "1" may be those of any network
        inner, layer, has_layer = first_layer.split(inner, path)
    readings.append(Fit(inner, layer, has_layer, notes))
    while len({key.partition(".")[0] for key in inner}) == 1 and all("." in key for key in inner):
        inner = {key.partition(".")[2]: value for key, value in inner.items()}
        readings.append(Fit(inner, layer, has_layer, notes))
    return readings


def _checked(fit: Fit, wanted: State) -> tuple[Fit, dict[str, list[str]]]:
    found = {key: v for key, v in fit.weights.items() if key in wanted or not is_counter(key)}
    return Fit(found, fit.layer, fit.has_layer, fit.notes), differences(wanted, found)


def is_counter(key: str) -> bool:
    """Whether a batch norm counts its batches there."""
    return key.split(".")[-1] == COUNTER


def differences(wanted: State, found: State) -> dict[str, list[str]]:
    """What ``found`` lacks, has too much, or has in another shape or kind; empty if it fits."""
    wrong = [
        f"{key} {_kind(value)}, got {_kind(found[key])}"
        for key, value in wanted.items()
        if key in found and _kind(value) != _kind(found[key])
    ]
    result = {
        "missing": [key for key in wanted if key not in found and not is_counter(key)],
        "unexpected": [key for key in found if key not in wanted],
        "wrong shape": wrong,
    }
    return {what: keys for what, keys in result.items() if keys}


def _kind(value: torch.Tensor) -> str:
    """Shape, and whether it is a number or a count."""
    return f"{tuple(value.shape)}{'' if value.is_floating_point() else ' of integers'}"


def list_differences(found: dict[str, list[str]]) -> str:
    """The first keys of each kind."""
    return "; ".join(f"{what} {first_of(keys)}" for what, keys in found.items())


def first_of(words: list[str], count: int = 3) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return ", ".join(words[:count]) + more
