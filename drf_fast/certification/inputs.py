"""Checks and conversions of images of a user: unambiguous input is accepted, other input raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from drf_fast.ops import checks as check
from drf_fast.ops import level_checks
from drf_fast.runtime import units
from drf_fast.runtime.tensors import of_array

ImageIds = torch.Tensor | np.ndarray | Sequence[int]

# The levels 0..255 as pixels, correctly rounded: on the CPU, since a GPU may multiply by 1/255.
_PIXELS = torch.arange(256, dtype=torch.float32, device="cpu") / 255
_UINT16 = getattr(torch, "uint16", None)  # since torch 2.3
_MAX_OUTSIDE = 0.5  # distance from [0, 1] that normalised images exceed, and rounding does not


def one_image(x: Any) -> torch.Tensor:
    """One image (C, H, W).

    Raises:
        TypeError, ValueError: not a tensor or array, or a batch.
    """
    x = _tensor(x)
    if x.dim() >= 4:
        raise ValueError(
            f"x must be one image such as (C, H, W), got shape {tuple(x.shape)}; pass x[0] of a "
            "batch of one, or all images to certify_batch or predict_batch"
        )
    return x


def images(x: Any) -> torch.Tensor:
    """A batch of images, in float32 or float64; half precisions are converted to float32, exactly.

    Raises:
        TypeError, ValueError: not a batch of images, or integers.
    """
    x = _tensor(x)
    if not x.is_floating_point():
        bits, most = (16, 65535) if x.dtype == _UINT16 else (8, 255)
        raise TypeError(
            f"x must be float32 pixels in [0, 1], got {x.dtype}; convert {bits}-bit images with "
            f"x.float() / {most}"
        )
    check.images(x)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def warn_of_other_units(x: torch.Tensor, sigma: float) -> bool:
    """Warn of images in other units than [0, 1], and of a noise level in others than they have.

    Returns:
        Whether it did.
    """
    low, high = (float(value) for value in torch.aminmax(x.detach()))
    if low >= -_MAX_OUTSIDE and high <= 1 + _MAX_OUTSIDE:
        return units.warn_of_sigma(sigma)
    units.warn(
        f"images hold values from {low:.4g} to {high:.4g}: sigma and radii are in the same "
        "units, and published ones are for pixels in [0, 1]; divide by 255 and normalise "
        "inside the network"
    )
    return True


def how_to_pass(rows: torch.Tensor) -> str:
    """What to try where a network fails on rows of this shape."""
    how = (
        "pass images of the shape that it was trained on, a single one as x to certify and "
        "predict, and several as (B, ...) to their batch forms"
    )
    sizes = tuple(rows.shape[1:])
    if len(sizes) == 3 and sizes[-1] in (1, 3) and sizes[0] not in (1, 3):
        how += "; channels must come first: x.permute(2, 0, 1), of a batch x.permute(0, 3, 1, 2)"
    return how


def level_images(x: Any) -> torch.Tensor:
    """A batch of 8-bit images as uint8, from uint8 or from floats that are exactly float32(u)/255.

    Raises:
        TypeError, ValueError: not a batch of images, or other values.
    """
    x = _tensor(x)
    if x.dtype == torch.uint8:
        return level_checks.images(x, "x")
    if not x.is_floating_point():
        raise TypeError(
            f"x must be 8-bit images, uint8 levels or float32 levels / 255, got {x.dtype}; convert "
            "levels 0..255 with x.to(torch.uint8)"
        )
    check.images(x)
    levels = (x.double() * 255).round().clamp(0, 255).nan_to_num(0).to(torch.uint8)
    wrong = _PIXELS.to(x.device)[levels.long()].double() != x.double()
    if bool(wrong.any()):
        raise ValueError(
            "sound certificates are of 8-bit images: expected uint8, or floats that are exactly "
            f"float32(u) / 255 for a whole u in 0..255, got a pixel of {float(x[wrong][0]):.9g}; "
            "pass them as uint8, or certify without sound"
        )
    return levels


def _tensor(x: Any) -> torch.Tensor:
    if isinstance(x, np.ndarray):
        x = of_array(x, "x")
    return check.is_tensor(x, "x").detach()


def one_id(image_id: Any, device: torch.device) -> torch.Tensor:
    """(1,) int64 of one image id, a number of Python, NumPy or a 0-dim tensor."""
    number = image_id.item() if isinstance(image_id, torch.Tensor) else image_id
    return torch.tensor([check.count(number, "image_id", 0, 2**32 - 1)], device=device)


def ids(image_ids: Any, device: torch.device) -> torch.Tensor:
    """Image ids as int64, from a tensor, array or list of whole numbers; the latter on ``device``.

    Raises:
        TypeError, ValueError: something else.
    """
    if not isinstance(image_ids, torch.Tensor):
        image_ids = of_array(np.asarray(image_ids), "image_ids").to(device)
    if image_ids.is_floating_point() or image_ids.dtype == torch.bool:
        raise TypeError(f"image_ids must be whole numbers, got {image_ids.dtype}")
    return image_ids.long()
