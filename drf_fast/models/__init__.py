"""Architectures by name; one file each, and one entry in ``_ARCHITECTURES``.

A name of the form ``package.module:factory`` is a network of the user's own (``own.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

from torch import nn

from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.models import own
from drf_fast.models.lenet import LeNet
from drf_fast.models.normalize import Normalize, normalize_layer
from drf_fast.models.resnet import CifarResNet, resnet50


@dataclass(frozen=True)
class _Architecture:
    """A constructor, ``make(num_classes, in_channels)``, and the images that the network takes."""

    make: Callable[[int, int], nn.Module]
    takes: str
    fits: Callable[[int, int, int], bool]
    usual_size: int


def _cifar(depth: int) -> _Architecture:
    return _Architecture(
        partial(CifarResNet, depth),
        "images of at least 8x8",
        lambda channels, height, width: min(height, width) >= 8,
        32,
    )


_ARCHITECTURES = {
    "lenet": _Architecture(
        LeNet, "28x28 images", lambda channels, height, width: height == width == 28, 28
    ),
    "resnet20": _cifar(20),
    "resnet56": _cifar(56),
    "resnet110": _cifar(110),
    "resnet50": _Architecture(
        resnet50,
        "images of 3 channels, at least 32x32",
        lambda channels, height, width: channels == 3 and min(height, width) >= 32,
        224,
    ),
}
NAMES = tuple(_ARCHITECTURES)


def build(
    arch: str, num_classes: int, image_shape: tuple[int, ...], normalize: str = "none"
) -> nn.Module:
    """A network for images (C, H, W), randomly initialised from torch's default generator.

    Args:
        arch: one of ``NAMES``, or ``package.module:factory``, which runs that code.
        num_classes: outputs K of the last layer.
        image_shape: (C, H, W).
        normalize: a normalising first layer, one of ``drf_fast.models.normalize.NAMES``; the
            network is then ``nn.Sequential(Normalize, network)``, as published.

    Raises:
        InputError: unknown name, images of a size that the architecture does not take, or code
            that does not make a network for them.
    """
    layer = normalize_layer(normalize, image_shape[0])
    if names_code(arch):
        network = own.build(arch, num_classes, image_shape)
    else:
        check_shape(arch, image_shape)
        network = _ARCHITECTURES[arch].make(num_classes, image_shape[0])
    return network if layer is None else nn.Sequential(layer, network)


def build_for(
    weights: Container[str], arch: str, num_classes: int, image_shape: tuple[int, ...]
) -> nn.Module:
    """The network that the state dict ``weights`` belongs to, ready to load it.

    It has a normalising first layer if ``weights`` holds the constants of one.

    Raises:
        InputError: as ``build``.
    """
    network = build(arch, num_classes, image_shape)
    if "0.mean" not in weights:
        return network
    return nn.Sequential(Normalize([0.0] * image_shape[0], [1.0] * image_shape[0]), network)


def check_shape(arch: str, image_shape: tuple[int, ...]) -> None:
    """Refuse images (C, H, W) that ``arch`` does not take.

    Raises:
        InputError: unknown name, or images of a size that the architecture does not take.
    """
    architecture, shape = _lookup(arch), tuple(image_shape)
    if len(shape) != 3 or not architecture.fits(*shape):
        fit = [name for name, of in _ARCHITECTURES.items() if len(shape) == 3 and of.fits(*shape)]
        raise InputError(
            f"{arch} takes {architecture.takes}, got images of shape {shape}; choose --arch "
            f"{', '.join([*fit, 'package.module:factory'])} (a network of your own)"
        )


def usual_shape(arch: str, channels: int) -> tuple[int, int, int]:
    """(C, H, W) of the images that ``arch`` was designed for, which weights do not determine.

    Raises:
        InputError: unknown name.
    """
    size = _lookup(arch).usual_size
    return (channels, size, size)


def _lookup(arch: str) -> _Architecture:
    if arch not in _ARCHITECTURES:
        raise InputError(
            f"--arch must be one of {', '.join(NAMES)}, or package.module:factory for a network of "
            f"your own, got {arch!r}"
        )
    return _ARCHITECTURES[arch]
