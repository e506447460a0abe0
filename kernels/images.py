"""Memory layouts of batches of images, for the kernels that make noise.

Noise is assigned to pixels in logical NCHW order, but kernels traverse memory. The two orders
differ for channels_last images; other layouts than these two do not reach a kernel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from drf_fast.runtime.tensors import FLOATS, is_channels_last

# Kernels index the pixels of an image in 32 bits, up to a block beyond the last one.
MAX_PIXELS = 2**31 - 2**16


class Layout(NamedTuple):
    """The sizes from which a kernel computes the address of pixel p and the groups of its noise."""

    pixels: int
    octets: int  # G / 8 for G = 8 ceil(pixels / 32) counter groups: Triton sees that 8 divides G
    area: int
    channels: int


def layout_of(x: torch.Tensor) -> Layout:
    """The layout of images that are dense, see ``dense``."""
    pixels = math.prod(x.shape[1:])
    channels = x.shape[1] if is_channels_last(x) else 1
    return Layout(pixels, (pixels + 31) // 32, pixels // channels, channels)


def dense(x: torch.Tensor) -> torch.Tensor:
    """x, or a contiguous copy of it unless it is dense in one of the two memory formats."""
    return x if is_channels_last(x) else x.contiguous()


def check(name: str, x: torch.Tensor) -> None:
    """Refuse images, or noisy copies, that the kernel does not support.

    Raises:
        TypeError, ValueError: the dtype, or numbers of images or pixels, do not fit.
    """
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected images of one of {', '.join(map(str, FLOATS))}, got {x.dtype}; "
            "convert them"
        )
    check_size(name, x)


def check_levels(name: str, u: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse 8-bit images, or a dtype of their noisy copies, that the kernel does not support.

    Raises:
        TypeError, ValueError: dtypes, or numbers of images or pixels that do not fit.
    """
    if u.dtype != torch.uint8 or dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected uint8 images and copies of one of {', '.join(map(str, FLOATS))}, "
            f"got {u.dtype} and {dtype}; convert them"
        )
    check_size(name, u)


def check_size(name: str, x: torch.Tensor) -> None:
    """Refuse no images, and images without pixels or with more than a kernel counts.

    Raises:
        ValueError: the shape is such.
    """
    if x.dim() < 1 or x.shape[0] == 0 or not 0 < math.prod(x.shape[1:]) <= MAX_PIXELS:
        raise ValueError(
            f"{name}: expected images (B, ...) of 1 to {MAX_PIXELS} values, B at least 1, got "
            f"{tuple(x.shape)}; reshape them, or cut them into tiles"
        )
