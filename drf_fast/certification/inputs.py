"""Images as users hand them over: what has one meaning works, the rest gets one sentence."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from drf_fast.ops import checks as check

_FAR = 4.0  # from [0, 1]: no rounding, and no normalisation in use, goes further


def one_image(x: Any) -> torch.Tensor:
    """One image (C, H, W).

    Raises:
        TypeError, ValueError: no image, or a batch where one image is due.
    """
    x = _tensor(x)
    if x.dim() >= 4:
        raise ValueError(
            f"x must be one image such as (C, H, W), got shape {tuple(x.shape)}; pass x[0] of a "
            "batch of one, or all images to certify_batch or predict_batch"
        )
    return x


def images(x: Any) -> torch.Tensor:
    """A batch of images, in float32 or float64; half precisions are float32 exactly.

    Raises:
        TypeError, ValueError: no images, or integers.
    """
    x = check.images(_tensor(x))
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    low, high = (float(value) for value in torch.aminmax(x.detach()))
    if low < -_FAR or high > 1 + _FAR:
        warnings.warn(
            f"images hold values from {low:.4g} to {high:.4g}: sigma and radii are in the same "
            "units, and published ones are for pixels in [0, 1]; divide by 255 and normalise "
            "inside the network",
            stacklevel=4,
        )
    return x


def _tensor(x: Any) -> torch.Tensor:
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    check.is_tensor(x, "x")
    if not x.is_floating_point():
        raise TypeError(
            f"x must be float32 pixels in [0, 1], got {x.dtype}; convert 8-bit images with "
            "x.float() / 255"
        )
    return x
