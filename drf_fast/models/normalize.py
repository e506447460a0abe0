"""Per-channel normalisation as the first layer of a network.

It is applied after the noise, not in the data loader, so that sigma, attack strengths and certified
radii are in units of pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from drf_fast.errors import InputError

_CIFAR10 = (0.4914, 0.4822, 0.4465)
_IMAGENET = (0.485, 0.456, 0.406)
_ONE = (1.0, 1.0, 1.0)

# (mean, std) of each channel. The 2019 smoothing repository, consistency and smoothmix normalise;
# smoothing-adversarial (Salman et al. 2019) subtracts the mean only. MACER does neither.
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": (_CIFAR10, (0.2023, 0.1994, 0.2010)),
    "cifar10-center": (_CIFAR10, _ONE),
    "imagenet": (_IMAGENET, (0.229, 0.224, 0.225)),
    "imagenet-center": (_IMAGENET, _ONE),
}
NAMES = ("none", *CONSTANTS)
_OF_DATA = {"cifar10": "cifar10", "imagenet": "imagenet"}


def for_data(data: str) -> str:
    """The normalisation that published recipes use on the data set ``data``: "none" on MNIST."""
    return _OF_DATA.get(data, "none")


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
    """The layer called ``name``, one of ``NAMES``; ``None`` for "none".

    Raises:
        InputError: unknown name, or constants for another number of channels.
    """
    if name not in NAMES:
        raise InputError(f"--normalize must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "none":
        return None
    mean, std = CONSTANTS[name]
    if len(mean) != channels:
        raise InputError(
            f"--normalize {name} is for images of {len(mean)} channels, got {channels}; "
            "use --normalize none"
        )
    return Normalize(mean, std)
