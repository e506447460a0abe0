"""The anytime-valid bounds against their equation at 50 digits, and their error probability.

The error is not simulated here but computed: the distribution of the count is carried from sample
to sample, and what lies outside the bounds is taken out and summed.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from drf_fast.certification.anytime import (
    BoundPair,
    anytime_lower,
    anytime_upper,
    radius_from_bound,
)

Real = Any  # mpmath's mpf, which has no type annotations

DIGITS = 50
LEVELS = (0.5, 0.05, 1e-3, 1e-4, 1e-9)


def log_mixture(k: int, t: int, p: Real, q: Real) -> Real:
    """log K_t(p) from its definition; q = 1 - p."""
    half = mp.mpf(1) / 2
    log_beta = mp.loggamma(k + half) + mp.loggamma(t - k + half) - mp.loggamma(t + 1)
    return log_beta - mp.log(mp.pi) - k * mp.log(p) - (t - k) * mp.log(q)


def assert_safe_and_tight(k: int, t: int, alpha: float, bound: BoundPair) -> None:
    """Both numbers of a lower bound below the root, and above it when moved by the tolerance."""
    context = f"k={k} t={t} alpha={alpha!r} {bound}"
    rate, level = mp.mpf(k) / t, -mp.log(mp.mpf(alpha))
    p, c = mp.mpf(bound.p), mp.mpf(bound.complement)
    for below, margin in ((p, p), (1 - c, c)):
        assert below < rate, context
        assert log_mixture(k, t, below, 1 - below) >= level, f"above the true bound: {context}"
        above = below + (rate - below) * mp.mpf("1e-13") + margin * mp.mpf("2e-15")
        assert above > rate or log_mixture(k, t, above, 1 - above) < level, f"loose: {context}"


def grid() -> list[tuple[int, int]]:
    draw = random.Random(5)
    cases = [(k, t) for t in (1, 2, 3, 7, 15, 16, 17, 33) for k in range(1, t + 1)]
    for t in (256, 1000, 10_000, 100_000, 10**7):
        few = [draw.randint(1, 40) for _ in range(5)]
        counts = {1, 2, t // 2, t // 2 + 1, t - 2, t - 1, t, *few, *(t - k for k in few)}
        cases += [(k, t) for k in counts | {draw.randint(1, t) for _ in range(8)}]
    return cases


@pytest.mark.parametrize("alpha", LEVELS)
def test_both_bounds_are_safe_and_tight(alpha: float) -> None:
    with mp.workdps(DIGITS):
        for k, t in grid():
            assert_safe_and_tight(k, t, alpha, anytime_lower(k, t, alpha))
            complement, p = anytime_upper(t - k, t, alpha)  # the lower bound of the other outcome
            assert_safe_and_tight(k, t, alpha, BoundPair(p, complement))


@pytest.mark.parametrize("alpha", [1e-302, 1e-40, 1 - 2**-53])
def test_extreme_levels_and_sizes_are_safe_and_tight(alpha: float) -> None:
    draw = random.Random(6)
    with mp.workdps(DIGITS):
        for t in (1, 2, 1000, 10**12, 2**53):
            for k in {t, max(t - 1, 1), max(t - 77, 1), t // 2 + 1, draw.randint(1, t)}:
                bound = anytime_lower(k, t, alpha)
                if bound.p > 0.0:
                    assert_safe_and_tight(k, t, alpha, bound)
                else:
                    root = log_mixture(k, t, mp.mpf("1.1e-300"), 1)
                    assert root < -mp.log(mp.mpf(alpha)), (k, t, alpha)


def test_small_samples_in_exact_arithmetic() -> None:
    """K is also the product of its predictions, (successes + 1/2) / (samples + 1) for the next."""
    for alpha in (0.05, 0.4):
        for t in range(1, 13):
            for k in range(1, t + 1):
                prediction = Fraction(1)
                for i in range(t):  # the order of the outcomes does not matter
                    hits = i + Fraction(1, 2) if i < k else i - k + Fraction(1, 2)
                    prediction *= hits / (i + 1)

                def mixture(p: Fraction, prediction: Fraction = prediction) -> Fraction:
                    return prediction / p**k / (1 - p) ** (t - k)  # noqa: B023

                p = Fraction(anytime_lower(k, t, alpha).p)
                above = p + (Fraction(k, t) - p) / 10**12
                assert mixture(p) >= 1 / Fraction(alpha) > mixture(above)


def test_no_success_bounds_nothing_from_below() -> None:
    assert anytime_lower(0, 9, 0.05) == BoundPair(0.0, 1.0)
    assert anytime_upper(9, 9, 0.05) == BoundPair(1.0, 0.0)


def test_more_successes_raise_both_bounds_and_the_rate_lies_between() -> None:
    for t in (1, 2, 30, 400):
        lower = [anytime_lower(k, t, 0.05) for k in range(t + 1)]
        upper = [anytime_upper(k, t, 0.05) for k in range(t + 1)]
        for bounds in (lower, upper):
            assert all(a.p < b.p for a, b in itertools.pairwise(bounds))
            assert all(a.complement > b.complement for a, b in itertools.pairwise(bounds))
        for k, (low, high) in enumerate(zip(lower, upper, strict=True)):
            assert low.p <= k / t <= high.p
            assert low.p < high.p


def test_a_larger_alpha_raises_the_lower_bound() -> None:
    levels = [1e-300, 1e-12, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-12]
    for k, t in ((1, 1), (1, 9), (5, 9), (9, 9), (700, 1000), (99_990, 100_000)):
        bounds = [anytime_lower(k, t, alpha).complement for alpha in levels]
        assert all(a > b for a, b in itertools.pairwise(bounds)), (k, t)


# ------------------------------------------------------------------------------ error probability

Bounds = Callable[[int, int], tuple[float, float]]  # (count, trials) -> lower, upper


def error_probability(bounds: Bounds, truth: float, samples: int) -> float:
    """P(truth is outside the bounds after any of the samples)."""
    at = np.zeros(samples + 1)  # P(count = k, and inside so far)
    at[0] = 1.0
    for t in range(1, samples + 1):
        at[1:] = at[1:] * (1.0 - truth) + at[:-1] * truth
        at[0] *= 1.0 - truth
        counts = range(t + 1)
        inside = bisect.bisect_left(counts, truth, key=lambda k, t=t: bounds(k, t)[1])
        above = bisect.bisect_right(counts, truth, key=lambda k, t=t: bounds(k, t)[0])
        at[:inside] = 0.0
        at[above:] = 0.0
    return 1.0 - float(at.sum())


def sequence(alpha: float) -> Bounds:
    return lambda k, t: (anytime_lower(k, t, alpha).p, anytime_upper(k, t, alpha).p)


@pytest.mark.parametrize("truth", [0.5, 0.6, 0.75, 0.9, 0.97, 0.99, 0.999])
def test_a_look_after_every_sample_errs_with_probability_alpha_at_most(truth: float) -> None:
    error = error_probability(sequence(0.05), truth, 600)
    assert 0.005 < error <= 0.05  # the least is that of 0.999, which fails once in 1000 samples


def test_this_computation_catches_twice_the_alpha() -> None:
    assert error_probability(sequence(2 * 0.05), 0.5, 600) > 0.05


# ----------------------------------------------------------------------------- radius_from_bound


def true_quantile(q: Real, near: float) -> Real:
    """The x with P(N(0, 1) > x) = q: Newton's method from a double close to it."""
    x = mp.mpf(near)
    for _ in range(4):
        excess = mp.erfc(x / mp.sqrt(2)) / 2 - q
        x += excess * mp.sqrt(2 * mp.pi) * mp.exp(x * x / 2)
    return x


def test_the_radius_is_never_above_its_true_value() -> None:
    draw = random.Random(8)
    complements = [10 ** draw.uniform(-12, 0) / 2 for _ in range(400)]
    complements += [0.5 - 10 ** draw.uniform(-15, -1) for _ in range(200)]
    complements += [1e-300, 0.4, math.nextafter(0.4, 0), math.nextafter(0.5, 0)]
    sigma = 0.25  # a power of two, so the product with the quantile is exact
    with mp.workdps(DIGITS):
        for complement in complements:
            found = radius_from_bound(complement, sigma)
            truth = true_quantile(mp.mpf(complement), found / sigma) * mp.mpf(sigma)
            assert truth * (1 - mp.mpf("1e-13")) <= found <= truth, complement


def test_no_radius_from_one_half_on() -> None:
    assert radius_from_bound(0.5, 1.0) == radius_from_bound(1.0, 1.0) == 0.0


def test_near_one_the_radius_has_digits_that_p_has_not() -> None:
    bound = anytime_lower(10**15, 10**15, 0.001)
    assert radius_from_bound(bound.complement, 1.0) > radius_from_bound(1.0 - bound.p, 1.0)


# ----------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("bound", [anytime_lower, anytime_upper])
@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((10, 9, 0.1), ValueError, "between 0 and trials, got 10 of 9; pass counts of the same"),
        ((-1, 9, 0.1), ValueError, "successes must lie in 0.."),
        ((0, 0, 0.1), ValueError, "trials must lie in 1.."),
        ((0, 2**53 + 1, 0.1), ValueError, "trials must lie in 1..9007199254740992"),
        ((3.0, 9, 0.1), TypeError, "successes must be an int, got float"),
        ((3, True, 0.1), TypeError, "trials must be an int, got bool"),
        ((3, 9, 0.0), ValueError, "alpha must be finite and above 0, got 0.0"),
        ((3, 9, 1.0), ValueError, r"alpha must be an error probability in \[1e-302, 1\), got 1.0"),
        ((3, 9, math.nan), ValueError, "alpha must be finite"),
        ((3, 9, "0.1"), TypeError, "alpha must be a number, got str"),
    ],
)
def test_bad_arguments_of_the_bounds(
    bound: Callable[..., BoundPair], arguments: tuple, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        bound(*arguments)


@pytest.mark.parametrize(
    ("complement", "sigma", "sentence"),
    [
        (0.0, 1.0, "complement must be finite and above 0, got 0.0"),
        (1.5, 1.0, "complement must be 1 - p of a probability p, got 1.5"),
        (math.nan, 1.0, "complement must be finite"),
        (0.1, 0.0, "sigma must be finite and above 0, got 0.0"),
        (0.1, math.inf, "sigma must be finite"),
    ],
)
def test_bad_arguments_of_the_radius(complement: float, sigma: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        radius_from_bound(complement, sigma)
