"""Checks of the arguments of ``noisy_levels``: 8-bit images, a sigma with a table, the dtype."""

from __future__ import annotations

from typing import Any

import torch

from drf_fast.ops import checks as check
from drf_fast.runtime.level_table import level_table
from drf_fast.runtime.tracing import are_values_unknown

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def images(u: Any, name: str = "u") -> torch.Tensor:
    """A non-empty uint8 (B, ...) tensor with at least one pixel."""
    if check.is_tensor(u, name).dtype != torch.uint8:
        raise TypeError(
            f"{name} must be uint8 levels 0..255, got {u.dtype}; of floats that are levels / 255, "
            f"pass ({name} * 255).round().to(torch.uint8)"
        )
    return check.nonempty(u, name)


def dtype(dtype: Any) -> torch.dtype:
    """A dtype of ``DTYPES``, in which noisy copies of 8-bit images are returned."""
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise TypeError(
            f"dtype must be one of {', '.join(map(str, DTYPES))}, got {check.brief(dtype)}"
        )
    return dtype


def sigma(sigma: Any) -> float:
    """sigma as a number, for which a table of noise in whole levels exists or is now made."""
    if isinstance(sigma, torch.Tensor) and sigma.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"sigma must be a number, of which a table is made, got a tensor on {sigma.device}; "
            "pass float(sigma)"
        )
    unknown = torch.compiler.is_compiling() or are_values_unknown()
    if unknown and isinstance(sigma, (int, float)):
        return float(sigma)  # its range is checked when the operation runs
    # A float is not made a tensor first, which a CUDA graph could not capture.
    number = sigma if type(sigma) is float else float(check.scalar(sigma, "sigma", positive=True))
    level_table(number)
    return number
