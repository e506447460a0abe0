"""Dtypes, memory formats and bits of tensors, as several parts need them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

# The dtypes that the operations take, as the compiled cores name them.
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
FLOATS = tuple(DTYPE_NAMES)


def of_array(array: np.ndarray, name: str) -> torch.Tensor:
    """The array as a tensor that is not written to: of its memory, or where torch cannot use that
    (strides, byte order) of a copy.

    Raises:
        TypeError: it holds no numbers.
    """
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        if native.flags.writeable:
            return torch.from_numpy(native)
        with warnings.catch_warnings():  # of a memory map, which is not copied: it may be large
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            return torch.from_numpy(native)
    except TypeError as error:
        raise TypeError(
            f"{name} must be an array of numbers, got dtype {array.dtype}; convert it with "
            f"{name}.astype(...)"
        ) from error


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


def empty_rows(like: torch.Tensor, rows: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty (rows, ...) tensor in the device and memory format of images, and their dtype."""
    return torch.empty(
        (rows, *like.shape[1:]),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=memory_format_of(like),
    )


def per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values`` (B,) reshaped to broadcast with ``like`` (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def same_bits(now: list[torch.Tensor], then: list[torch.Tensor]) -> bool:
    """Whether all tensors are equal in every bit; waits once for each GPU."""
    equal: dict[torch.device, list[torch.Tensor]] = {}
    for a, b in zip(now, then, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        a, b = _as_integers(a.detach()), _as_integers(b)
        if a.device.type != "cpu":
            equal.setdefault(a.device, []).append((a == b).all())
        elif not torch.equal(a, b):
            return False
    return all(bool(torch.stack(each).all()) for each in equal.values())


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, since a NaN is not equal to itself."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    integers = sizes.get(tensor.element_size())
    return tensor if integers is None else tensor.view(integers)
