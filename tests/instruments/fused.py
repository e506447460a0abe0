"""Multiply-add with one rounding, in numpy: what a GPU's fma computes, to the bit.

Both dtypes use an intermediate rounded to odd (Boldo and Melquiond 2008): its last bit is sticky,
set if the result is inexact, so that the second rounding gives what a single one would.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c for float32 or float64 arrays of one dtype, rounded once to nearest, even.

    float64 beyond 2^990 or below 2^-900, where the parts of a product over- or underflow, is
    computed in the platform's long double and may be rounded twice.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:
            return _sum_to_odd(a.astype(np.float64) * b, c.astype(np.float64)).astype(np.float32)
        product, low = _two_product(a, b)
        inner, inner_low = _two_sum(c, low)
        outer, outer_low = _two_sum(product, inner)
        result = outer + _sum_to_odd(inner_low, outer_low)
        extreme = (np.abs(a) > 2.0**490) | (np.abs(b) > 2.0**490) | (np.abs(c) > 2.0**980)
        extreme |= ~(np.abs(product) > 2.0**-900)
        wide = (a.astype(np.longdouble) * b + c).astype(np.float64)
        return np.where(extreme | ~np.isfinite(result), wide, result)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and its rounding error."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b rounded, and its rounding error."""

    def halves(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    (a1, a2), (b1, b2) = halves(a), halves(b)
    product = a * b
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _sum_to_odd(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd: truncated, with the last bit set where it is inexact."""
    total, low = _two_sum(a, b)
    total = np.array(total, np.float64, ndmin=1)
    bits = total.view(np.int64)
    inexact = (np.asarray(low) != 0) & np.isfinite(total) & ((bits & 1) == 0)
    away = (np.asarray(low) > 0) == (total > 0)  # the exact sum is further from 0
    bits += np.where(inexact, np.where(away, 1, -1), 0)
    return total.reshape(np.shape(low))
