"""certified_radius against the true radius at 40 digits; the truth is never a double."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath as mp
import pytest
import torch

import drf_fast

Real = Any  # mpmath's mpf, which has no type annotations

OPERATIONS = ("certified_radius",)

GOLDEN = Path(__file__).parents[1] / "golden" / "clopper_pearson.csv"
DIGITS = 40


def radius(successes: list[int], trials: int | list[int], sigma: float, alpha: float) -> list:
    totals = trials if isinstance(trials, int) else torch.tensor(trials)
    counts = torch.tensor(successes)
    return drf_fast.certified_radius(counts, totals, sigma=sigma, alpha=alpha).tolist()


def exactly(value: Fraction) -> Real:
    return mp.mpf(value.numerator) / value.denominator


def upper_tail(x: Real) -> Real:
    return mp.erfc(x / mp.sqrt(2)) / 2


def true_quantile(q: Real, near: float) -> Real:
    """The x with P(N(0, 1) > x) = q: Newton's method from a double close to it."""
    x = mp.mpf(near)
    for _ in range(4):
        x += (upper_tail(x) - q) * mp.sqrt(2 * mp.pi) * mp.exp(x * x / 2)
    return x


@functools.cache
def log_factorial(k: int) -> Real:
    with mp.workdps(DIGITS):
        return mp.loggamma(k + 1)


def log_tail_and_ratio(k: int, n: int, q: Real) -> tuple[Real, Real]:
    """log T and T / pmf(k), T = P(Bin(n, 1 - q) >= k), summed from its first term (p < k/n)."""
    bits = 100
    ratio = int(mp.ldexp((1 - q) / q, bits))
    term = total = 1 << bits
    for j in range(k, n):
        term = term * (n - j) * ratio // ((j + 1) << bits)
        if term < 4:
            break
        total += term
    log_pmf = log_factorial(n) - log_factorial(k) - log_factorial(n - k)
    log_pmf += k * mp.log1p(-q) + (n - k) * mp.log(q)
    sum_ = mp.ldexp(mp.mpf(total), -bits)
    return log_pmf + mp.log(sum_), sum_


def true_radius(k: int, n: int, alpha: float, near: float) -> Real:
    """Phi^-1(p_L) from a double close to it: a Newton step squares a relative error of 1e-14."""
    x = mp.mpf(near)
    q = upper_tail(x)
    log_tail, ratio = log_tail_and_ratio(k, n, q)
    dp = (log_tail - mp.log(mp.mpf(alpha))) * ratio * (1 - q) / k
    density = mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)
    return x - dp / density


def assert_safe_and_tight(found: float, truth: Real, context: object) -> None:
    deficit = truth - mp.mpf(found)
    assert deficit >= 0, f"above the true radius by {mp.nstr(-deficit, 5)}: {context}"
    assert deficit <= truth * mp.mpf("1e-11"), f"below by {mp.nstr(deficit, 5)}: {context}"


def test_every_golden_row_is_never_exceeded_and_met_within_1e_11(backend: str) -> None:
    with GOLDEN.open(newline="") as file:
        rows = list(csv.DictReader(file))
    certified = 0
    with mp.workdps(DIGITS):
        for alpha in sorted({row["alpha"] for row in rows}):
            group = [row for row in rows if row["alpha"] == alpha]
            counts, totals = [int(r["k"]) for r in group], [int(r["n"]) for r in group]
            for row, found in zip(group, radius(counts, totals, 1.0, float(alpha)), strict=True):
                if Fraction(row["lower"]) <= Fraction(1, 2):
                    assert found == 0.0, row
                    continue
                truth = true_quantile(exactly(Fraction(row["one_minus_lower"])), found)
                assert_safe_and_tight(found, truth, row)
                certified += 1
    assert certified > 250


@functools.cache
def ten_thousand() -> list[int]:
    draw = random.Random(2024)
    return [draw.randint(50_489, 100_000) for _ in range(10_000)]  # 50,489: the first certified


@functools.cache
def true_radius_of_100_000(k: int, near: float) -> Real:
    return true_radius(k, 100_000, 0.001, near)


@pytest.mark.slow
def test_ten_thousand_random_counts_of_100_000(backend: str) -> None:
    sigma = 0.5  # a power of two, so the product with the quantile is exact
    with mp.workdps(DIGITS):
        found = radius(ten_thousand(), 100_000, sigma, 0.001)
        for k, r in zip(ten_thousand(), found, strict=True):
            near = float(f"{r / sigma:.9e}")  # the same for all backends: one truth serves all
            truth = true_radius_of_100_000(k, near) / 2
            assert_safe_and_tight(r, truth, k)


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-6, 1e-12])
def test_other_levels_and_sizes(backend: str, alpha: float) -> None:
    draw = random.Random(3)
    with mp.workdps(DIGITS):
        for n in (20, 100, 1000, 10_000, 1_000_000):
            counts = sorted({draw.randint(n // 2, n) for _ in range(20)} - {n} | {n - 1, n - 2})
            for k, r in zip(counts, radius(counts, n, 1.0, alpha), strict=True):
                if r > 0.0:
                    assert_safe_and_tight(r, true_radius(k, n, alpha, r), (k, n))


def test_nearest_to_one_half_it_is_safe_and_its_deficit_tiny(backend: str) -> None:
    """There only an absolute bound can hold: p_L - 1/2 is a difference of rounded numbers."""
    for n, alpha in ((1000, 0.5), (100_000, 0.001), (10**7, 0.001), (10**9, 0.05)):
        spread = math.sqrt(n) / 2
        middle = n // 2 + round(spread * {0.5: 0.0, 0.05: 1.6449, 0.001: 3.0902}[alpha])
        counts = list(range(middle - 3, middle + 4))
        found = radius(counts, n, 1.0, alpha)
        k, r = next((k, r) for k, r in zip(counts, found, strict=True) if r > 0.0)
        with mp.workdps(DIGITS):
            deficit = true_radius(k, n, alpha, r) - mp.mpf(r)
            assert 0 <= deficit <= mp.mpf("1e-13") / mp.sqrt(n), (k, n, alpha)


def test_the_largest_radius_of_100_000_samples(backend: str) -> None:
    (found,) = radius([100_000], 100_000, 1.0, 0.001)
    with mp.workdps(DIGITS):
        q = -mp.expm1(mp.log(mp.mpf(0.001)) / 100_000)
        assert_safe_and_tight(found, true_quantile(q, found), "k = n")
    assert 3.811 < found < 3.812


def test_zero_exactly_where_the_bound_is_at_most_one_half(backend: str) -> None:
    for n, alpha in ((1, 0.5), (1, 0.9), (2, 0.25), (2, 0.2), (9, 0.001), (1001, 0.05)):
        found = radius(list(range(n + 1)), n, 1.0, alpha)
        ways = 0  # of n fair coins to show at least k heads
        for k in range(n, -1, -1):
            ways += math.comb(n, k)
            assert (found[k] > 0.0) == (Fraction(ways, 2**n) < Fraction(alpha)), (k, n, alpha)


def test_more_successes_never_shrink_the_radius(backend: str) -> None:
    for n, alpha in ((10, 0.5), (1000, 0.001), (1000, 0.8)):
        found = radius(list(range(n + 1)), n, 1.0, alpha)
        assert all(a < b or a == b == 0.0 for a, b in itertools.pairwise(found))


def test_the_radius_scales_with_sigma(backend: str) -> None:
    (unit,) = radius([990], 1000, 1.0, 0.001)
    for sigma in (0.12, 0.25, 0.5, 1.0, 2.0, 1e-300, 1e300):
        (found,) = radius([990], 1000, sigma, 0.001)
        assert abs(Fraction(found) / Fraction(sigma) / Fraction(unit) - 1) < Fraction(1, 10**15)


def test_sigma_at_the_ends_of_the_range_stays_safe(backend: str) -> None:
    smallest, largest = 5e-324, 1.7976931348623157e308
    truth = true_radius(990, 1000, 0.001, radius([990], 1000, 1.0, 0.001)[0])
    assert mp.mpf(radius([990], 1000, smallest, 0.001)[0]) <= truth * mp.mpf(smallest)
    assert radius([990], 1000, largest, 0.001) == [largest]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_sigma_that_is_no_noise_level_is_refused(backend: str, sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        radius([5], 9, sigma, 0.001)


def test_more_successes_than_trials_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="got 10 of 9 at index 1; pass counts of the same samples"):
        radius([5, 10], 9, 0.5, 0.001)
