"""Triton's interpreter with the errors that a GPU is allowed to make.

The interpreter's divisions, roots and sums are more accurate than those of hardware, so that a test
may pass on it and fail on a GPU. With ``DRF_FAST_TEST_KERNELS=like-gpu`` and ``TRITON_INTERPRET=1``
operations are only as accurate as the PTX manual or CUDA's tables of errors guarantee:

    division       div.full.f32: 2 units in the last place          div_rn is exact
    square root    sqrt.approx.ftz.f32: 1 unit, subnormals are 0    sqrt_rn is exact
    exp, log       ex2.approx of x log2(e), 2 units; libdevice's logarithm, 1 unit, subnormals are 0
    fma            rounded once
    sums           a tree, in an order that is random for each specialisation of a kernel
    maxima         NaN is ignored, so that the argmax of a row with NaN is undefined
    loads          masked lanes without ``other`` have undefined values
    shifts         beyond the width: undefined
    to integers    saturating; NaN becomes 0, or the lowest number where 64 bits are involved

Errors follow from the bits of the operands and the seed: equal operands give equal results, as in
hardware. Each test draws anew from ``DRF_FAST_TEST_SEED``, which its failure names.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

CHOSEN = os.environ.get("DRF_FAST_TEST_KERNELS") == "like-gpu"
SEED = int(os.environ.get("DRF_FAST_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
Array = np.ndarray


class _Draw:
    """The random state of the current test and the current launch."""

    test = zlib.crc32(b"") ^ SEED
    specialisation = ""
    random = np.random.default_rng(SEED)


def begin(test: str) -> None:
    """Seed the random state for ``test``, independently of the tests before it."""
    _Draw.test = zlib.crc32(test.encode()) ^ SEED
    _Draw.random = np.random.default_rng(_Draw.test)


def _moved(exact: Array, most: int, *operands: Array) -> Array:
    """A number within ``most`` units in the last place of ``exact``, in the dtype of the operands.

    Results that are not normal numbers are rounded to nearest.
    """
    exact = np.array(exact, ndmin=1)
    value = exact.astype(operands[0].dtype)
    chosen = np.full(value.shape, _Draw.test, np.uint64)
    for operand in np.broadcast_arrays(value, *operands)[1:]:
        bits = np.ascontiguousarray(operand).view(f"u{operand.itemsize}").astype(np.uint64)
        chosen = (chosen ^ bits.reshape(value.shape)) * np.uint64(0x9E3779B97F4A7C15)
        chosen ^= chosen >> np.uint64(29)
    steps = (chosen % np.uint64(2 * most + 1)).astype(np.int64) - most
    whole = value.view(f"i{value.itemsize}")
    moved = (whole + steps.astype(whole.dtype)).view(value.dtype)
    normal = np.isfinite(moved) & (np.abs(value) > 4 * np.finfo(value.dtype).tiny)
    near = np.abs(moved - exact) <= most * np.spacing(np.abs(value))  # value has its own rounding
    return np.where(normal & near & np.isfinite(value), moved, value)


def _flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0) * x, x)


def _divided(a: Array, b: Array) -> Array:
    quotient = np.divide(a, b)
    if quotient.dtype != np.float32:
        return quotient
    exact = np.frexp(np.abs(b))[0] == 0.5  # a power of 2 has an exact reciprocal
    moved = _moved(np.divide(a, b, dtype=np.float64), 2, a, b)
    return np.where(exact, quotient, moved.reshape(quotient.shape))


def _root(x: Array) -> Array:
    if x.dtype != np.float32:
        return np.sqrt(x)
    x = _flushed(x)
    return _moved(np.sqrt(x, dtype=np.float64), 1, x)


def _exp(x: Array) -> Array:
    if x.dtype != np.float32:
        return _moved(np.exp(x.astype(np.longdouble)), 1, x)
    scaled = x * np.float32(1.4426950408889634)
    return _moved(np.exp2(scaled.astype(np.float64)), 2, x)


def _log(x: Array) -> Array:
    flushed = _flushed(x) if x.dtype == np.float32 else x
    exact = np.log(flushed.astype(np.longdouble))
    return np.where(flushed == 1, 0, _moved(exact, 1, x).reshape(x.shape)).astype(x.dtype)


def _to_integer(x: Array, dtype: np.dtype) -> Array:
    info = np.iinfo(dtype)
    whole = np.trunc(x.astype(np.longdouble))
    value = np.clip(np.nan_to_num(whole), info.min, info.max).astype(dtype)
    lowest = x.dtype == np.float64 or dtype.itemsize == 8
    at_nan = np.array(1 << (8 * dtype.itemsize - 1), np.uint64).astype(dtype) if lowest else 0
    return np.where(np.isnan(x), at_nan, value).astype(dtype)


def _tree_sum(rows: Array) -> Array:
    """The sum over the first axis as threads do it: each a part in sequence, then in pairs.

    Elements are distributed at random, seeded by specialisation and shape: one layout, one order.
    """
    name = f"{_Draw.specialisation} {rows.shape} {rows.dtype}"
    random = np.random.default_rng([_Draw.test, zlib.crc32(name.encode())])
    rows = rows[random.permutation(len(rows))]
    threads = 1 << int(random.integers(0, len(rows).bit_length()))
    while len(rows) > threads:
        here = min(threads, len(rows) - threads)
        rows = np.concatenate(
            [
                rows[:here] + rows[threads : threads + here],
                rows[here:threads],
                rows[threads + here :],
            ]
        )
    while len(rows) > 1:
        half = len(rows) // 2
        rows = np.concatenate([rows[:half] + rows[half : 2 * half], rows[2 * half :]])
    return rows[0]


def _specialisation(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> str:
    """The properties of a launch for which Triton compiles a kernel anew."""

    def told(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.data_ptr() % 16 == 0 if value.device.type == "cpu" else 0
        return (value == 1, value % 16 == 0) if isinstance(value, int) else type(value).__name__

    return f"{kernel.__name__} {[told(v) for v in arguments]} {sorted(constants.items(), key=str)}"


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Inside, the interpreter makes the errors of a GPU."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    handle, dtype_of = interpreter.TensorHandle, interpreter._get_np_dtype
    reduce = interpreter.ReduceOps

    def operation(function: Callable[..., Array]) -> Callable[..., Any]:
        def run(self: Any, *operands: Any) -> Any:
            with np.errstate(all="ignore"):
                result = function(*(operand.data for operand in operands))
            shape = np.broadcast_shapes(*(operand.data.shape for operand in operands))
            like = operands[-1]
            return handle(result.reshape(shape).astype(like.data.dtype), like.dtype.scalar)

        return run

    def anything(shape: tuple[int, ...], dtype: np.dtype) -> Array:
        size = int(np.prod(shape)) * dtype.itemsize
        bits = np.frombuffer(_Draw.random.bytes(size), np.uint8)
        return (bits > 127 if dtype.kind == "b" else bits.view(dtype)).reshape(shape)

    masked_load = builder.create_masked_load

    def load(self: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        if other is None:
            element = pointers.get_element_ty()
            other = handle(anything(pointers.data.shape, dtype_of(element)), element)
        return masked_load(self, pointers, mask, other, *options)

    def shift(name: str) -> Callable[..., Any]:
        within = getattr(builder, name)

        def run(self: Any, a: Any, b: Any) -> Any:
            result = within(self, a, b)
            distance = b.data.astype(np.int64)
            beyond = (distance < 0) | (distance >= 8 * a.data.itemsize)
            wild = anything(result.data.shape, result.data.dtype)
            return handle(np.where(beyond, wild, result.data), result.dtype)

        return run

    def to_integer(self: Any, source: Any, kind: Any) -> Any:
        dtype = dtype_of(kind)
        if dtype.kind == "b":
            return self.cast_impl(source, kind)
        with np.errstate(all="ignore"):
            return handle(_to_integer(source.data, dtype), kind.scalar)

    plain_sum, plain_min_max = reduce.sum, reduce.min_max

    def sum_(self: Any, value: Any) -> Any:
        data = value.handle.data
        if data.dtype.kind != "f":
            return plain_sum(self, value)
        rows = data.reshape(-1) if self.axis is None else np.moveaxis(data, self.axis, 0)
        with np.errstate(all="ignore"):
            total = np.asarray(_tree_sum(rows), data.dtype)
        if self.keep_dims:
            kept = [1 if self.axis in (None, at) else n for at, n in enumerate(data.shape)]
            total = total.reshape(kept)
        return self.to_tensor(total if total.ndim else total[()], value.dtype)

    def min_max(self: Any, value: Any, *operations: Any, **named: Any) -> Any:
        data = (value[0] if isinstance(value, tuple) else value).handle.data
        if named.get("idx_reduce_op") and data.dtype.kind == "f" and np.isnan(data).any():
            raise AssertionError("the largest of numbers with NaN among them depends on the order")
        return plain_min_max(self, value, *operations, **named)

    call = interpreter.GridExecutor.__call__

    def launched(self: Any, *arguments: Any, **constants: Any) -> Any:
        _Draw.specialisation = _specialisation(self.fn, arguments, constants)
        return call(self, *arguments, **constants)

    from fused import fma

    with contextlib.ExitStack() as stack:
        for owner, name, function in [
            (builder, "create_fma", operation(fma)),
            (builder, "create_fdiv", operation(_divided)),
            (builder, "create_sqrt", operation(_root)),
            (builder, "create_exp", operation(_exp)),
            (builder, "create_log", operation(_log)),
            (builder, "create_masked_load", load),
            *(
                (builder, name, shift(name))
                for name in ("create_shl", "create_lshr", "create_ashr")
            ),
            (builder, "create_fp_to_si", to_integer),
            (builder, "create_fp_to_ui", to_integer),
            (reduce, "sum", sum_),
            (reduce, "min_max", min_max),
            (interpreter.GridExecutor, "__call__", launched),
        ]:
            stack.enter_context(mock.patch.object(owner, name, function))
        yield
