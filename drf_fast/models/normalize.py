"""Per-channel normalisation as the first layer of a network.

It is applied after the noise, not in the data loader, so that sigma, attack strengths and certified
radii are in units of pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from drf_fast.errors import InputError
from drf_fast.runtime.text import number_of

_CIFAR10 = (0.4914, 0.4822, 0.4465)
_IMAGENET = (0.485, 0.456, 0.406)
_ONE = (1.0, 1.0, 1.0)

# (mean, std) of each channel. The 2019 smoothing repository, consistency and smoothmix normalise;
# smoothing-adversarial (Salman et al. 2019) subtracts the mean only. MACER does neither. Those of
# MNIST are of PyTorch's example; for CIFAR-100 programs differ, and name theirs in numbers.
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": (_CIFAR10, (0.2023, 0.1994, 0.2010)),
    "cifar10-center": (_CIFAR10, _ONE),
    "imagenet": (_IMAGENET, (0.229, 0.224, 0.225)),
    "imagenet-center": (_IMAGENET, _ONE),
    "mnist": ((0.1307,), (0.3081,)),
}
NAMES = ("none", *CONSTANTS)
_OF_DATA = {"cifar10": "cifar10", "imagenet": "imagenet"}


def for_data(data: str, channels: int) -> str:
    """The normalisation that published recipes use on the data set ``data``: "none" on MNIST.

    And "none" on grey images in class folders, for which it has other constants.
    """
    name = _OF_DATA.get(data, "none")
    return name if name == "none" or len(CONSTANTS[name][0]) == channels else "none"


class Normalize(nn.Module):
    """(x - mean) / std, per channel of (B, C, H, W).

    The constants are buffers, hence part of the state dict, so a checkpoint is complete.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


def normalize_layer(name: str, channels: int) -> Normalize | None:
    """The layer called ``name``, one of ``NAMES``, or of the numbers MEAN/STD; ``None`` for "none".

    In MEAN/STD each side is one number for all channels, or one a channel: "0.5,0.4,0.3/0.25".

    Raises:
        InputError: neither a name nor such numbers, or constants for another number of channels.
    """
    if name == "none":
        return None
    sides = CONSTANTS[name] if name in CONSTANTS else _numbers(name, channels)
    count = next((len(side) for side in sides if len(side) != channels), channels)
    if count != channels:
        raise InputError(
            f"--normalize {name} is for images of {number_of(count, 'channel')}, got {channels}; "
            "use --normalize none, or numbers, as in 0.5/0.25"
        )
    return Normalize(*sides)


def _numbers(text: str, channels: int) -> tuple[tuple[float, ...], ...]:
    """Mean and std of "MEAN/STD"; one number stands for all channels."""
    try:
        mean, std = (tuple(map(float, side.split(","))) for side in text.split("/"))
        constants = torch.tensor([*mean, *std], dtype=torch.float32)
        valid = bool(constants.isfinite().all() and (constants[len(mean) :] > 0).all())
    except ValueError:
        valid = False
    if not valid:
        raise InputError(
            f"--normalize must be one of {', '.join(NAMES)}, or MEAN/STD in numbers, finite and "
            f"the std above 0, as in 0.5/0.25 or 0.5,0.4,0.3/0.25,0.25,0.2, got {text!r}"
        )
    return tuple(side * channels if len(side) == 1 else side for side in (mean, std))


def value_of(layer: Normalize | None) -> str:
    """The value of ``--normalize`` that gives a layer of these constants, to six digits."""
    if layer is None:
        return "none"
    known = {"none": ((0.0,) * len(layer.mean), (1.0,) * len(layer.mean)), **CONSTANTS}
    own = (_rounded(layer.mean.tolist()), _rounded(layer.std.tolist()))
    same = (name for name, sides in known.items() if tuple(map(_rounded, sides)) == own)
    return next(same, "/".join(own))


def _rounded(values: Iterable[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
