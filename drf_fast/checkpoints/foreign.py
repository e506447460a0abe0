"""Checkpoints of other repositories: smoothing (Cohen, Rosenfeld, Kolter 2019),
smoothing-adversarial, smoothing-consistency, smoothmix, MACER; and plain state dicts.

Their files hold a state dict, alone or under a key, whose names wrappers may have changed
(``names.py``), and ``nn.Sequential(normalize_layer, network)`` puts a "1." before them
(``first_layer.py``). They contain neither sigma nor the name of the data set.

The architecture is recognised by the names and shapes of all tensors. Networks with the same
tensors and different forward passes cannot be distinguished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from drf_fast import models
from drf_fast.checkpoints import first_layer, fitting, names
from drf_fast.checkpoints.first_layer import State
from drf_fast.checkpoints.fitting import (
    COUNTER,
    LOAD_THEM_THERE,
    first_of,
    is_counter,
    list_differences,
)
from drf_fast.errors import InputError

_IMPOSSIBLE = "not possible with"
_ANOTHER = f"pass the file of such a network, {LOAD_THEM_THERE}"
_PUBLISHED_NAMES = {f"cifar_{arch}": arch for arch in ("resnet20", "resnet56", "resnet110")}


def convert(
    content: Any, path: Path, arch: str | None = None, normalize: str | None = None
) -> dict[str, Any]:
    """A published checkpoint in the form of ``drf_fast.checkpoints.ours.load``, without sha256.

    Args:
        content: of the file, as ``tensorfile.read`` returned it.
        path: of the file, for messages.
        arch: its architecture, by our name or the published one ("cifar_resnet110"); ``None``
            takes the one named in the file or, if there is none we know, the one that fits.
        normalize: its first layer, one of ``drf_fast.models.normalize.NAMES``; ``None`` takes the
            constants in the file, or assumes the usual ones (see ``first_layer.pick``).

    Returns:
        * arch, num_classes, image_shape, model: for ``models.build_for``; the shape is the usual
          one of the architecture;
        * config: sigma and data are ``None``, since the file does not contain them;
        * notes: sentences for the user about what was converted;
        * assumed: a sentence if the first layer had to be assumed, or ``None``.

    Raises:
        InputError: no state dict, or one that does not fit: names the first keys that differ.
    """
    state, beside = names.state_dict(content, path)
    state, dropped = names.canonical(state, path)
    network, in_file, has_layer = first_layer.split(state, path)
    network, notes = _float_weights(network, path)
    notes = beside + dropped + notes
    while (inner := fitting.without_common_part(network)) is not None:  # no network of ours has one
        network = inner
    arch_in_file, epoch = content.get("arch"), content.get("epoch")
    arch_in_file = arch_in_file if isinstance(arch_in_file, str) else None
    arch = _pick_arch(network, path, arch, arch_in_file)
    channels, num_classes = _channels(network), _num_classes(network)
    shape = models.usual_shape(arch, channels)
    name, layer, assumed = first_layer.choose(
        first_layer.usual_for(shape), channels, normalize, in_file, has_layer, path
    )
    return {
        "arch": arch,
        "num_classes": num_classes,
        "image_shape": list(shape),
        "model": first_layer.attach(network, layer),
        "config": {
            "sigma": None,
            "data": None,
            "method_label": "foreign",
            "normalize": name,
            "arch_in_file": arch_in_file,
            "epoch": epoch if isinstance(epoch, int) else None,
        },
        "notes": notes,
        "assumed": assumed,
    }


def _pick_arch(network: State, path: Path, requested: str | None, in_file: str | None) -> str:
    """The architecture requested, else named in the file, else fitting; it fits in any case."""
    channels, num_classes = _channels(network), _num_classes(network)
    if channels < 1 or num_classes < 2:
        raise InputError(
            f"{path} holds no classifier of images: expected convolutions and a last linear layer "
            f"of 2 or more classes, got {first_of([*network])}; pass another file"
        )
    named = requested or in_file or ""
    arch = _PUBLISHED_NAMES.get(named, named)
    if requested is not None or arch in models.NAMES:
        differences = _differences(arch, network)
        if not differences:
            return arch
        others = [name for name in models.NAMES if not _differences(name, network)]
        raise InputError(
            f"the weights in {path} do not fit {arch}, named by "
            f"{'--arch' if requested is not None else 'the file'}: "
            f"{list_differences(differences)}; "
            + (f"pass --arch {others[0]}" if others else _ANOTHER)
        )
    all_differences = {}
    for arch in models.NAMES:
        all_differences[arch] = _differences(arch, network)
        if not all_differences[arch]:
            return arch
    closest = min(models.NAMES, key=lambda name: _distance(all_differences[name]))
    raise InputError(
        f"the weights{f' of {named}' if named else ''} in {path} fit none of "
        f"{', '.join(models.NAMES)}; the closest is {closest}: "
        f"{list_differences(all_differences[closest])}; name the code of such a network with "
        "--arch package.module:factory"
    )


def _differences(arch: str, network: State) -> dict[str, list[str]]:
    """Keys that the weights lack, have in excess, or have in another shape; empty if they fit."""
    channels, num_classes = _channels(network), _num_classes(network)
    shape = models.usual_shape(arch, channels)
    try:
        with torch.random.fork_rng(devices=[]):  # building draws random weights
            expected = models.build(arch, num_classes, shape).state_dict()
    except InputError:
        return {_IMPOSSIBLE: [f"a first convolution of {channels} channels"]}
    return fitting.differences(expected, network)


def _distance(differences: dict[str, list[str]]) -> tuple[bool, int]:
    """How far weights are from fitting; furthest where the architecture cannot be built."""
    return _IMPOSSIBLE in differences, sum(map(len, differences.values()))


def _float_weights(network: State, path: Path) -> tuple[State, list[str]]:
    """The weights, checked, in float32, and a sentence about each other dtype in the file."""
    dtypes: set[torch.dtype] = set()
    result: State = {}
    for key, value in network.items():
        if is_counter(key):
            continue
        fitting.check_weights(key, value, path, floats=True)
        dtypes.add(value.dtype)
        result[key] = value.detach().to(torch.float32).contiguous()
        if key.endswith("running_var"):
            counter = key.removesuffix("running_var") + COUNTER
            result[counter] = torch.zeros((), dtype=torch.int64)
    return result, [
        f"{path.name} holds weights of {dtype}: "
        + ("rounded to float32" if dtype == torch.float64 else "read as float32, which is exact")
        for dtype in sorted(dtypes - {torch.float32}, key=str)
    ]


def _channels(network: State) -> int:
    """Input channels of the first convolution."""
    return next((int(value.shape[1]) for value in network.values() if value.dim() == 4), 0)


def _num_classes(network: State) -> int:
    """Outputs of the last linear layer."""
    return next((len(value) for value in reversed(network.values()) if value.dim() == 2), 0)
