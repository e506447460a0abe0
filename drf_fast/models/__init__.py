"""Architectures by name; one file each. A new one is one entry in ``_ARCHITECTURES``."""

from __future__ import annotations

from typing import Any

from torch import nn

from drf_fast.errors import InputError
from drf_fast.models.lenet import LeNet

_ARCHITECTURES: dict[str, Any] = {"lenet": LeNet}
NAMES = tuple(_ARCHITECTURES)


def build(arch: str, num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A freshly initialised network for images (C, H, W); torch's default generator seeds it.

    Raises:
        InputError: unknown name, or images of a size that the architecture does not take.
    """
    if arch not in _ARCHITECTURES:
        raise InputError(f"--arch must be one of {', '.join(NAMES)}, got {arch!r}")
    if arch == "lenet" and tuple(image_shape[1:]) != (28, 28):
        raise InputError(f"lenet takes 28x28 images, got images of shape {tuple(image_shape)}")
    return _ARCHITECTURES[arch](num_classes, image_shape[0])
