"""Loading weights of any origin into a given network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drf_fast.checkpoints import first_layer, names
from drf_fast.checkpoints.names import State
from drf_fast.errors import InputError
from drf_fast.models.normalize import Normalize

COUNTER = "num_batches_tracked"  # missing before torch 0.4.1, and unused in eval mode
_STATISTICS = ("running_mean", "running_var")  # of a batch norm, which are trained

LOAD_THEM_THERE = (
    "or load them in the factory (--arch package.module:factory) and leave the checkpoint out"
)
_OR_CODE = ", or name the code of another network with --arch package.module:factory"


@dataclass(frozen=True)
class Fit:
    """How the weights of a file fit a network.

    Attributes:
        weights: state dict with the network's names.
        layer: the normalising first layer before the network, if its constants are in the file.
        has_layer: whether there is such a layer: some files lack the constants.
        notes: sentences for the user.
    """

    weights: State
    layer: Normalize | None
    has_layer: bool
    notes: list[str]


def load_into(
    network: nn.Module,
    content: Any,
    path: Path,
    what: str,
    num_classes: int,
    new_head: bool = False,
) -> Fit:
    """Put the weights in ``content``, as ``tensorfile.read`` returned it, into ``network``.

    Names are tried unchanged, without the prefixes of wrappers, and without a first part that all
    have; the variant that fits all of the network's names and shapes is taken.

    Args:
        network: the network, without a normalising first layer of ours.
        content: a state dict, or a dict that contains one.
        path: of the file, for messages.
        what: the network's name, for messages.
        num_classes: K, of the network.
        new_head: whether to keep the network's own last layer, and note it, where that in the file
            is of another number of classes only.

    Raises:
        InputError: no state dict, one that does not fit (names the keys that differ), or weights
            that are no finite numbers.
    """
    network = getattr(network, "_orig_mod", network)
    expected = network.state_dict()
    found: list[tuple[Fit, dict[str, list[str]]]] = []
    for reading in _interpretations(content, path):
        found.append(_compared(reading, expected))
        if not found[-1][1]:
            break
    fit, different = min(found, key=lambda pair: sum(map(len, pair[1].values())))
    head, classes = _of_other_classes(expected, fit.weights, num_classes)
    if head and new_head:
        note = (
            f"{path.name} is of {classes} classes: {first_of(head)} are left out, and those of "
            f"{num_classes} classes start at random"
        )
        kept = {key: value for key, value in fit.weights.items() if key not in head}
        fit = replace(fit, weights=kept, notes=[*fit.notes, note])
    elif head:
        raise InputError(
            f"the weights in {path} do not fit {what}: expected {num_classes} classes, as many as "
            f"the data set has, got {classes} in {first_of(head)}; pass the data set that they "
            "were trained on, or train a new last layer with 'drf-fast train --init'"
        )
    elif different:
        raise InputError(
            f"the weights in {path} do not fit {what}: {list_differences(different)}; "
            f"{_remedy(network, different)}"
        )
    rounded = set()
    trained = dict(network.named_parameters(remove_duplicate=False)).keys()
    for key, value in fit.weights.items():
        mask = key not in trained and bool(expected[key].isinf().any())
        check_weights(key, value, path, mask=mask)
        if value.dtype == torch.float64 and expected[key].dtype != torch.float64:
            rounded.add(value.dtype)
    network.load_state_dict(fit.weights, strict=False)
    notes = fit.notes + [f"{path.name} holds weights of {dtype}: rounded" for dtype in rounded]
    return Fit(fit.weights, fit.layer, fit.has_layer, notes)


def _of_other_classes(expected: State, found: State, num_classes: int) -> tuple[list[str], int]:
    """The tensors of the last layer, and its classes in ``found``, if only their number differs.

    No tensors if they fit, or if others differ, too: then it is another network.
    """
    if differences(expected, found).keys() != {"wrong shape"}:
        return [], 0
    shared = [key for key in expected if key in found]
    wrong = [k for k in shared if _shape_and_type(expected[k]) != _shape_and_type(found[k])]
    layers = {key.rpartition(".")[0] for key in wrong}
    head = [key for key in shared if {key.rpartition(".")[0]} == layers]
    pairs = [(expected[key], found[key]) for key in head]
    alike = all(
        own.dim() == other.dim() > 0
        and own.shape[1:] == other.shape[1:]
        and own.is_floating_point() == other.is_floating_point()
        for own, other in pairs
    )
    sizes = {(len(own), len(other)) for own, other in pairs} if alike else set()
    if len(sizes) != 1:
        return [], 0
    ((own_classes, classes),) = sizes
    return (head, classes) if own_classes == num_classes else ([], 0)


def _remedy(network: nn.Module, differences: dict[str, list[str]]) -> str:
    """What to do about weights that differ from those of the network."""
    if differences.keys() == {"missing"} and _are_constants(network, differences["missing"]):
        return (
            "if these buffers are constants of a normalisation, keep them out of checkpoints with "
            "register_buffer(..., persistent=False), or name the network without it and pass "
            "--normalize"
        )
    return (
        f"pass the checkpoint of this network or the network of this checkpoint, {LOAD_THEM_THERE}"
    )


def _are_constants(network: nn.Module, keys: list[str]) -> bool:
    """Whether all are names of buffers that training does not change, as far as one can tell."""
    buffers = dict(network.named_buffers())
    return all(key in buffers and key.split(".")[-1] not in _STATISTICS for key in keys)


def check_weights(
    key: str, value: torch.Tensor, path: Path, floats: bool = False, mask: bool = False
) -> None:
    """Refuse a tensor that cannot be a weight.

    Args:
        key: the tensor's name.
        value: the tensor.
        path: of the file, for messages.
        floats: whether to refuse integers, which some networks have in their buffers.
        mask: whether it may hold infinity, as a buffer that masks attention does from the start.

    Raises:
        InputError: a tensor that is sparse, not on the CPU, overlaps itself, or is not finite.
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
    if (value.isnan() if mask else ~value.isfinite()).any():
        raise InputError(
            f"{where} finite weights, got NaN or infinity; its training diverged or the file is "
            "damaged"
        )


def _interpretations(content: Any, path: Path) -> Iterator[Fit]:
    """Possible mappings of the file's names to the network's, the simplest first."""
    state, beside = names.state_dict(content, path)
    yield Fit(state, None, False, beside)  # a part of the network may be called "module", too
    state = names.unwrapped(state, path)
    yield Fit(state, None, False, beside)
    inner, dropped = names.canonical(state, path)
    notes = beside + dropped
    layer, has_layer = None, False
    with contextlib.suppress(InputError):  # any nn.Sequential has parts "0" and "1"
        inner, layer, has_layer = first_layer.split(inner, path)
    yield Fit(inner, layer, has_layer, notes)
    while (shorter := without_common_part(inner)) is not None:
        inner = shorter
        yield Fit(inner, layer, has_layer, notes)


def without_common_part(state: State) -> State | None:
    """``state`` without a first part that all names have; None if there is none."""
    first = {key.partition(".")[0] for key in state}
    if len(first) != 1 or not all("." in key for key in state):
        return None
    return {key.partition(".")[2]: value for key, value in state.items()}


def _compared(fit: Fit, expected: State) -> tuple[Fit, dict[str, list[str]]]:
    found = {key: v for key, v in fit.weights.items() if key in expected or not is_counter(key)}
    return Fit(found, fit.layer, fit.has_layer, fit.notes), differences(expected, found)


def is_counter(key: str) -> bool:
    """Whether it is the name of a batch norm's counter of batches."""
    return key.split(".")[-1] == COUNTER


def differences(expected: State, found: State) -> dict[str, list[str]]:
    """Keys that ``found`` lacks, has in excess, or has in another shape or type; empty if none."""
    wrong = [
        f"{key} {_shape_and_type(value)}, got {_shape_and_type(found[key])}"
        for key, value in expected.items()
        if key in found and _shape_and_type(value) != _shape_and_type(found[key])
    ]
    result = {
        "missing": [key for key in expected if key not in found and not is_counter(key)],
        "unexpected": [key for key in found if key not in expected],
        "wrong shape": wrong,
    }
    return {what: keys for what, keys in result.items() if keys}


def _shape_and_type(value: torch.Tensor) -> str:
    """The shape, and whether the tensor holds integers."""
    return f"{tuple(value.shape)}{'' if value.is_floating_point() else ' of integers'}"


def list_differences(found: dict[str, list[str]]) -> str:
    """The first keys of each kind of difference, as text."""
    return "; ".join(f"{what} {first_of(keys)}" for what, keys in found.items())


def first_of(words: list[str]) -> str:
    """The first three words and the number of the others, as text."""
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more
