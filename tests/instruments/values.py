"""Numbers as the operations take them, and results compared in every bit."""

from __future__ import annotations

from typing import Any

import torch


def scalar(value: float) -> torch.Tensor:
    """A 0-dim float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def same_bits(a: Any, b: Any, *, strides: bool = False) -> bool:
    """Whether two results, tensors or sequences of tensors, agree in every bit, dtype and shape.

    The sign of 0 and the bits of a NaN count; with ``strides`` so does the order in memory.
    """
    if not isinstance(a, torch.Tensor):
        return len(a) == len(b) and all(
            same_bits(*pair, strides=strides) for pair in zip(a, b, strict=True)
        )
    if a.dtype != b.dtype or a.shape != b.shape or (strides and a.stride() != b.stride()):
        return False
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(*bits)
