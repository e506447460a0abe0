"""The arithmetic of instructions: types of result and operands, and a numpy function for each.

Approximations (ex2.approx, div.full, ...) are computed as accurately as the type allows;
``like_gpu`` simulates the errors of hardware.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from fused import fma

Array = np.ndarray
DTYPES = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{name: np.dtype(np.uint32) for name in ("bf16x2", "f16x2", "s16x2", "u16x2")},
    "bf16": np.dtype(np.uint16),
    "pred": np.dtype(bool),
}


class Meaning(NamedTuple):
    result: str
    sources: tuple[str, ...]
    function: Callable[..., Array]


def flushed(x: Array) -> Array:
    """Subnormal float32 numbers become 0 of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def to_bf16(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def meaning(parts: list[str]) -> Meaning | None:
    """The meaning of the opcode ``parts``; None if it is not arithmetic."""
    base, modifiers, kind = parts[0], parts[1:-1], parts[-1]
    if base == "cvt":
        return _conversion(modifiers[:-1], modifiers[-1], kind)
    if base == "setp":
        return _comparison(modifiers, kind)
    if base in ("shl", "shr"):
        return Meaning(kind, (kind, "u32"), _shift(base, DTYPES[kind]))
    if base == "selp":
        return Meaning(kind, (kind, kind, "pred"), lambda a, b, p: np.where(p, a, b))
    if base in ("mov", "cvta"):
        return Meaning(kind, (kind,), lambda a: a)
    if base in _LOGIC:
        count = {"not": 1, "lop3": 4}.get(base, 2)
        return Meaning(kind, (kind,) * count, _LOGIC[base])
    if base in _BITS:
        sources = {"popc": (kind,), "clz": (kind,), "brev": (kind,)}
        chosen = sources.get(base) or (
            (kind, kind, "u32", "u32") if base == "bfi" else (kind, "u32", "u32")
        )
        result = "u32" if base in ("popc", "clz") else kind
        return Meaning(result, chosen, _BITS[base])
    if kind in ("s16x2", "u16x2"):
        return Meaning(kind, (kind, kind), _packed(_INTEGERS[base], DTYPES[kind[:3]]))
    return _floats(base, modifiers, kind) if kind[0] == "f" else _integers(base, modifiers, kind)


# ------------------------------------------------------------------------------------------ floats

_FLOATS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.fmax,
    "min": np.fmin,
    "fma": fma,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "copysign": lambda sign, size: np.copysign(size, sign),
}
# Computed in the wider type, then rounded.
_WIDE: dict[str, Callable[..., Array]] = {
    "rcp": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
}
_COUNTS = {"fma": 3, "neg": 1, "abs": 1, "sqrt": 1}


def _floats(base: str, modifiers: list[str], kind: str) -> Meaning | None:
    dtype, flush = DTYPES[kind], "ftz" in modifiers and kind == "f32"
    if base in _WIDE:
        function, count = _WIDE[base], 1

        def compute(x: Array) -> Array:
            value = function(x.astype(np.float64 if kind != "f64" else np.longdouble)).astype(dtype)
            if base == "rcp" and kind == "f64" and "approx" in modifiers:  # 20 bits of the fraction
                value = (value.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(dtype)
            return value
    elif base in _FLOATS:
        compute, count = _FLOATS[base], _COUNTS.get(base, 2)
        if "NaN" in modifiers:
            compute = {"max": np.maximum, "min": np.minimum}[base]
    else:
        return None

    def run(*operands: Array) -> Array:
        operands = tuple(map(flushed, operands)) if flush else operands
        value = np.asarray(compute(*operands), dtype)
        return flushed(value) if flush else value

    return Meaning(kind, (kind,) * count, run)


# ---------------------------------------------------------------------------------------- integers

_INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
}


def _integers(base: str, modifiers: list[str], kind: str) -> Meaning | None:
    dtype = DTYPES[kind]
    if base in _INTEGERS:
        return Meaning(kind, (kind, kind), _INTEGERS[base])
    if base in ("neg", "abs"):
        return Meaning(kind, (kind,), _FLOATS[base])
    if base in ("div", "rem"):
        return Meaning(kind, (kind, kind), _quotient if base == "div" else _remainder)
    if base not in ("mul", "mad"):
        return None
    wide = np.dtype(f"{dtype.kind}{min(2 * dtype.itemsize, 8)}")
    result = f"{kind[0]}{8 * wide.itemsize}" if "wide" in modifiers else kind
    if "hi" in modifiers and dtype.itemsize == 8:
        return None

    def run(a: Array, b: Array, c: Array | int = 0) -> Array:
        if "lo" in modifiers:
            return a * b + np.asarray(c, dtype)
        product = a.astype(wide) * b.astype(wide)
        if "hi" in modifiers:
            product = (product >> wide.type(8 * dtype.itemsize)).astype(dtype)
        return product + np.asarray(c, product.dtype)

    return Meaning(result, (kind, kind, *([result] if base == "mad" else [])), run)


def _quotient(a: Array, b: Array) -> Array:
    """The quotient truncated towards 0; all bits set for a divisor of 0."""
    divisor = np.where(b == 0, 1, b).astype(b.dtype)
    towards_0 = (a - np.fmod(a, divisor)) // divisor
    return np.where(b == 0, ~np.zeros_like(a), towards_0)


def _remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b).astype(b.dtype)))


def _packed(function: Callable[..., Array], half: np.dtype) -> Callable[..., Array]:
    def run(a: Array, b: Array) -> Array:
        a, b = (np.ascontiguousarray(x) for x in np.broadcast_arrays(a, b))
        return function(a.view(half), b.view(half)).view(np.uint32)

    return run


# -------------------------------------------------------------------------------------------- bits


def _shift(base: str, dtype: np.dtype) -> Callable[[Array, Array], Array]:
    shift = np.left_shift if base == "shl" else np.right_shift
    last = 8 * dtype.itemsize - 1

    def run(a: Array, distance: Array) -> Array:
        within = np.minimum(distance, np.uint32(last)).astype(dtype)
        value = shift(a, within)
        # Beyond the width, signed shifts to the right replicate the sign and others give 0.
        return value if dtype.kind == "i" else np.where(distance > last, dtype.type(0), value)

    return run


def _lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    value = np.zeros(np.broadcast(a, b, c).shape, a.dtype)
    for row in range(8):
        if int(table[0]) >> row & 1:
            bits = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            value = value | bits
    return value


_LOGIC: dict[str, Callable[..., Any]] = {
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "lop3": _lop3,
}


def _popc(a: Array) -> Array:
    return np.unpackbits(a.reshape(-1, 1).view(np.uint8), axis=1).sum(1, dtype=np.uint32)


def _reversed(a: Array) -> Array:
    bits = np.unpackbits(a.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")[:, ::-1]
    return np.packbits(bits, axis=1, bitorder="little").view(a.dtype).reshape(-1)


def _clz(a: Array) -> Array:
    bits = np.unpackbits(a.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")[:, ::-1]
    return np.where(a == 0, bits.shape[1], bits.argmax(1)).astype(np.uint32)


def _field(a: Array, start: Array, length: Array) -> Array:
    """bfe: ``length`` bits from ``start`` on, the highest of them repeated if a is signed."""
    bits = 8 * a.itemsize
    start, length = start.astype(np.int64) & 255, length.astype(np.int64) & 255
    wide = a.astype(np.int64 if a.dtype.kind == "i" else np.uint64)
    kept = np.clip(np.minimum(length, bits - start), 0, bits)
    lifted = (wide.astype(np.uint64) << (64 - np.minimum(start + kept, 64)).astype(np.uint64)).view(
        wide.dtype
    )
    value = lifted >> np.minimum(64 - kept, 63).astype(wide.dtype)
    return np.where(kept == 0, 0, value).astype(a.dtype)


def _insert(a: Array, b: Array, start: Array, length: Array) -> Array:
    one, bits = np.uint64(1), 8 * a.itemsize
    start, length = (
        np.minimum(x.astype(np.uint64) & np.uint64(255), np.uint64(bits)) for x in (start, length)
    )
    ones = np.where(
        length == 64, ~np.uint64(0), (one << np.minimum(length, 63).astype(np.uint64)) - one
    )
    mask = np.where(start >= bits, 0, ones << np.minimum(start, 63).astype(np.uint64)).astype(
        a.dtype
    )
    placed = a << np.minimum(start, bits - 1).astype(a.dtype)
    return (b & ~mask) | (placed & mask)


def _permuted(a: Array, b: Array, choice: Array) -> Array:
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    value = np.zeros(np.broadcast(a, b, choice).shape, np.uint32)
    for byte in range(4):
        chosen = (choice >> np.uint32(4 * byte)) & np.uint32(15)
        found = (both >> (np.uint64(8) * (chosen & np.uint32(7)).astype(np.uint64))).astype(
            np.uint8
        )
        sign = np.where(found & 128, 255, 0).astype(np.uint8)
        found = np.where(chosen & 8, sign, found).astype(np.uint32)
        value = value | (found << np.uint32(8 * byte))
    return value


_BITS: dict[str, Callable[..., Array]] = {
    "popc": _popc,
    "clz": _clz,
    "brev": _reversed,
    "bfe": _field,
    "bfi": _insert,
    "prmt": _permuted,
}

# ------------------------------------------------------------------------ comparison, conversion

_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    **dict.fromkeys(("lt", "lo"), operator.lt),
    **dict.fromkeys(("le", "ls"), operator.le),
    **dict.fromkeys(("gt", "hi"), operator.gt),
    **dict.fromkeys(("ge", "hs"), operator.ge),
}


def _comparison(modifiers: list[str], kind: str) -> Meaning:
    name, flush = modifiers[0], "ftz" in modifiers
    combine = next((_LOGIC[m] for m in modifiers[1:] if m in ("and", "or", "xor")), None)

    def run(a: Array, b: Array, before: Array | None = None) -> Array:
        if kind[0] == "f":
            a, b = (flushed(a), flushed(b)) if flush else (a, b)
            unordered = np.isnan(a) | np.isnan(b)
            if name in ("num", "nan"):
                value = unordered if name == "nan" else ~unordered
            elif name.endswith("u"):
                value = _COMPARISONS[name[:-1]](a, b) | unordered
            else:
                value = _COMPARISONS[name](a, b) & ~unordered
        else:
            value = _COMPARISONS[name](a, b)
        return combine(value, before) if combine else value

    return Meaning("pred", (kind, kind, *(["pred"] if combine else [])), run)


def _conversion(modifiers: list[str], to: str, source: str) -> Meaning | None:
    if to in ("bf16x2", "f16x2"):

        def pack(high: Array, low: Array) -> Array:
            def bits(x: Array) -> Array:
                return to_bf16(x) if to == "bf16x2" else x.astype(np.float16).view(np.uint16)

            return (bits(high).astype(np.uint32) << np.uint32(16)) | bits(low)

        return Meaning(to, (source, source), pack)
    target = DTYPES[to]
    saturate = source[0] in "fb" and to[0] in "us"

    def run(x: Array) -> Array:
        x = from_bf16(x) if source == "bf16" else x
        x = flushed(x) if "ftz" in modifiers and x.dtype == np.float32 else x
        if to == "bf16":
            return to_bf16(x)
        if not saturate:
            return x.astype(target)
        rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
        whole = next(rounding[m] for m in modifiers if m in rounding)(x.astype(np.longdouble))
        info = np.iinfo(target)
        value = np.clip(np.nan_to_num(whole), info.min, info.max).astype(target)
        lowest = x.dtype == np.float64 or target.itemsize == 8
        at_nan = np.uint64(1 << (8 * target.itemsize - 1)).astype(target) if lowest else 0
        return np.where(np.isnan(x), at_nan, value).astype(target)

    return Meaning(to, (source,), run)
