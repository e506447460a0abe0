"""The ascent, the balls and the box on a block of pixels, for the adversary's kernels.

``drf_fast/backends/reference/operations.py`` is the definition. Lengths and factors are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def square(value):
    wide = value.to(tl.float64)
    return wide * wide


@triton.jit
def clamped(value, LOW: tl.constexpr, HIGH: tl.constexpr):
    """torch.clamp; comparisons instead of min and max propagate a NaN."""
    value = tl.where(value < LOW, LOW, value)
    return tl.where(value > HIGH, HIGH, value)


@triton.jit
def ascent_scale(step_size, divisor):
    """The factor of the summed gradient in the ascent."""
    positive = divisor > 0
    return tl.where(positive, step_size / tl.where(positive, divisor, 1.0), 0.0)


@triton.jit
def ascended(
    total,
    x_adv,
    scale,
    BALL: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    """x_adv after the ascent step, before the ball."""
    # In float64: where the network is confident, 1/norm can overflow float32.
    moved = x_adv + (total.to(tl.float64) * scale).to(total.dtype)
    # Hard and excess measure the displacement after clamping, the others before it.
    # (Parentheses for Triton 3.2, which takes no chain of "or".)
    if CLAMP and (BALL == "none" or (BALL == "hard" or BALL == "excess")):
        moved = clamped(moved, LOW, HIGH)
    return moved


@triton.jit
def shrinkage(length, step_size, epsilon, lam, BALL: tl.constexpr):
    """The factor, at most 1, by which the ball multiplies a displacement of this length."""
    weight = tl.where(lam > 1.0, 1.0, lam)
    # The comparisons propagate a NaN, for which ``shortened`` changes nothing.
    positive = tl.where(length < 2.2250738585072014e-308, 2.2250738585072014e-308, length)
    if BALL == "shrink":
        factor = 1.0 - weight
    elif BALL == "prox":
        left = 1.0 - step_size * lam / positive
        factor = tl.where(length > 0.0, tl.where(left < 0.0, 0.0, left), 1.0)
    else:
        over = 1.0 - epsilon / positive
        over = tl.where(over < 0.0, 0.0, over)
        # The hard ball is the excess form at lambda = 1; udr has lambda uncapped.
        if BALL == "udr":
            weight = lam
        factor = 1.0 - (over if BALL == "hard" else weight * over)
    return factor


@triton.jit
def shortened(
    moved, x, factor, BALL: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):
    """The resulting image, before it is rounded to its dtype."""
    if BALL != "none":
        shrink = factor.to(x.dtype)
        moved = tl.where(shrink < 1.0, x + (moved - x) * shrink, moved)
    if CLAMP:
        moved = clamped(moved, LOW, HIGH)
    return moved
