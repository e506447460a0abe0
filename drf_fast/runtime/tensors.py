"""Dtypes and memory formats of tensors, as all backends need them."""

from __future__ import annotations

import torch

# The dtypes that the operations take, as the compiled cores name them.
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
FLOATS = tuple(DTYPE_NAMES)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic on values of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x is dense in channels_last order and not contiguous as well."""
    return (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def memory_format_of(x: torch.Tensor) -> torch.memory_format:
    """The memory format of outputs computed from x: channels_last if x has it, else contiguous."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
