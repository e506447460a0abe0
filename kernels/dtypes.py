"""Conversions between the dtype of a tensor and the dtype of arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl

# Not the environment variable: it counts only if it was set before triton was imported.
INTERPRETED = tl.constexpr(type(tl.sum).__name__ == "InterpretedFunction")


@triton.jit
def widen(value):
    """The value in the dtype of arithmetic: float32 for half precisions, else unchanged."""
    dtype: tl.constexpr = value.dtype
    if dtype == tl.float16:
        wide = value.to(tl.float32)
    elif dtype == tl.bfloat16:
        # The interpreter converts subnormal numbers wrongly; a GPU's conversion is this shift.
        if INTERPRETED:
            bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
            wide = bits.to(tl.float32, bitcast=True)
        else:
            wide = value.to(tl.float32)
    else:
        wide = value
    return wide


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """``value``, float32 or float64, rounded to nearest, ties to even, in ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter truncates instead of rounding.
        bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, 0x7FC0)
        result = rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result
