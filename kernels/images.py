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


def check(name: str, batch: int, *images: torch.Tensor) -> None:
    """Refuse arguments with which a kernel would access memory outside the tensors.

    Raises:
        TypeError, ValueError: dtypes, devices, or numbers of rows or pixels that do not fit.
    """
    first = images[0]
    if first.dtype not in FLOATS or any(x.dtype != first.dtype for x in images):
        raise TypeError(
            f"{name}: expected images of one of {', '.join(map(str, FLOATS))}, got "
            f"{', '.join(str(x.dtype) for x in images)}; convert them"
        )
    if any(x.device != first.device for x in images):
        raise ValueError(
            f"{name}: expected tensors on one device, got "
            f"{', '.join(str(x.device) for x in images)}; move them"
        )
    fits = first.dim() >= 1 and all(
        x.dim() == first.dim() and x.shape[1:] == first.shape[1:] for x in images
    )
    if not fits or any(batch == 0 or x.shape[0] == 0 or x.shape[0] % batch for x in images):
        raise ValueError(
            f"{name}: expected images (B, ...) and noisy copies (B*m, ...) with B and m at least "
            f"1, got {', '.join(str(tuple(x.shape)) for x in images)}; reshape them"
        )
    if not 0 < math.prod(first.shape[1:]) <= MAX_PIXELS:
        raise ValueError(
            f"{name}: expected images of 1 to {MAX_PIXELS} values, got {tuple(first.shape[1:])}; "
            "cut them into tiles"
        )


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
    if u.dim() < 1 or u.shape[0] == 0 or not 0 < math.prod(u.shape[1:]) <= MAX_PIXELS:
        raise ValueError(
            f"{name}: expected images (B, ...) of 1 to {MAX_PIXELS} values, B at least 1, got "
            f"{tuple(u.shape)}; reshape them"
        )


def check_ids(name: str, image_ids: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse ids that are not one int64 for each image of x.

    Raises:
        ValueError: they have another number, dtype or device.
    """
    expected = (x.shape[:1], torch.int64, x.device)
    if (image_ids.shape, image_ids.dtype, image_ids.device) != expected:
        raise ValueError(
            f"{name}: expected one int64 id for each of {x.shape[0]} images on {x.device}, got ids "
            f"of {image_ids.dtype} {tuple(image_ids.shape)} on {image_ids.device}"
        )
