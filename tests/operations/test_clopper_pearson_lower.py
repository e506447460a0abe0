"""clopper_pearson_lower against 30-digit values and the binomial tail itself, in exact arithmetic.

No comparison with the truth is made in floating point: results are turned into fractions, the
truth is a decimal of 30 digits or a sum of binomial terms at 50 digits.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath as mp
import pytest
import torch

import drf_fast
from drf_fast.backends.reference import bounds as bounds_reference

Real = Any  # mpmath's mpf, which has no type annotations

OPERATIONS = ("clopper_pearson_lower",)

GOLDEN = Path(__file__).parents[1] / "golden" / "clopper_pearson.csv"
LEVELS = (0.5, 0.3, 0.05, 0.001, 1e-6, 1e-12, 0.5000000001, 0.9, 1 - 1e-6)


def lower(successes: Iterable[int], trials: int | Iterable[int], alpha: float) -> list[float]:
    counts = torch.tensor(list(successes))
    totals = trials if isinstance(trials, int) else torch.tensor(list(trials))
    return drf_fast.clopper_pearson_lower(counts, totals, alpha).tolist()


def tolerance(p: float, one_minus_p: Fraction) -> Fraction:
    return one_minus_p / 10**12 + 2 * Fraction(math.ulp(p))


def tail(k: int, n: int, p: Fraction) -> Real:
    """P(Bin(n, p) >= k) to 30 digits or more: its terms from k up, or 1 - those from k-1 down."""
    if p * (n + 1) > k + 1:
        return 1 - tail(n - k + 1, n, 1 - p)
    bits = 140
    with mp.workdps(50):
        odds = p / (1 - p)
        ratio = (odds.numerator << bits) // odds.denominator
        term = total = 1 << bits
        for j in range(k, n):
            term = term * (n - j) * ratio // ((j + 1) << bits)
            if term < 4:
                break
            total += term
        log_first = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
        log_first += k * mp.log(mp.mpf(p.numerator) / p.denominator)
        log_first += (n - k) * mp.log1p(-mp.mpf(p.numerator) / p.denominator)
        return mp.exp(log_first) * mp.ldexp(mp.mpf(total), -bits)


def assert_safe_and_tight(k: int, n: int, alpha: float, p: float) -> None:
    """p <= p_L <= p + tolerance, through P(Bin(n, p) >= k), which increases with p."""
    if k == n == 1:  # p_L is alpha itself, where a rounded comparison of the tail cannot decide
        assert 0 <= Fraction(alpha) - Fraction(p) <= tolerance(p, 1 - Fraction(alpha))
        return
    context = f"k={k} n={n} alpha={alpha!r} p={p!r}"
    below, above = Fraction(p), Fraction(p) + tolerance(p, 1 - Fraction(p)) * Fraction(999, 1000)
    level = mp.mpf(alpha)
    assert below == 0 or tail(k, n, below) <= level, f"above the true bound: {context}"
    assert above >= 1 or tail(k, n, above) >= level, f"too far below: {context}"


def test_the_oracle_agrees_with_exact_integer_arithmetic() -> None:
    for k, n, p in ((1, 1, Fraction(1, 3)), (7, 9, Fraction(3, 5)), (2, 30, Fraction(1, 4))):
        exact = sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))
        with mp.workdps(50):
            truth = mp.mpf(exact.numerator) / exact.denominator
            assert abs(tail(k, n, p) / truth - 1) < mp.mpf(10) ** -35


def test_every_golden_row_is_never_exceeded_and_met_within_tolerance(backend: str) -> None:
    with GOLDEN.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 613
    for alpha in sorted({row["alpha"] for row in rows}):
        group = [row for row in rows if row["alpha"] == alpha]
        found = lower(
            (int(r["k"]) for r in group), (int(r["n"]) for r in group), float(group[0]["alpha"])
        )
        for row, p in zip(group, found, strict=True):
            deficit = Fraction(row["lower"]) - Fraction(p)
            assert 0 <= deficit <= tolerance(p, Fraction(row["one_minus_lower"])), (row, p)


@pytest.mark.parametrize("alpha", LEVELS)
def test_small_and_random_counts_are_safe_and_tight(backend: str, alpha: float) -> None:
    draw = random.Random(7)
    cases = [(k, n) for n in (1, 2, 3, 4, 7, 16, 17, 40) for k in range(1, n + 1)]
    for _ in range(60):
        n = round(10 ** draw.uniform(1.5, 6))
        few = min(n, round(10 ** draw.uniform(0, math.log10(n))))
        cases += [(draw.randint(1, n), n), (few, n), (n - few + 1, n), (n // 2 + 1, n)]
    counts, totals = zip(*cases, strict=True)
    for (k, n), p in zip(cases, lower(counts, totals, alpha), strict=True):
        assert_safe_and_tight(k, n, alpha, p)


@pytest.mark.slow
def test_a_billion_trials_are_safe_and_tight(backend: str) -> None:
    n = 10**9
    for alpha in (0.001, 0.7):
        cases = [1, 2, 40, n // 7, n // 2, n // 2 + 48_860, n - 12_345, n - 3, n - 1, n]
        for k, p in zip(cases, lower(cases, n, alpha), strict=True):
            assert_safe_and_tight(k, n, alpha, p)


@pytest.mark.parametrize("alpha", [1e-300, 5e-324, 1 - 2**-53])
def test_extreme_levels_stay_safe(backend: str, alpha: float) -> None:
    cases = [(k, n) for n in (1, 2, 3, 50, 4000) for k in {1, 2, 3, n // 2, n - 1, n} if 0 < k <= n]
    counts, totals = zip(*cases, strict=True)
    for (k, n), p in zip(cases, lower(counts, totals, alpha), strict=True):
        assert 0.0 <= p <= 1.0
        assert_safe_and_tight(k, n, alpha, p)


def test_closed_forms_at_the_ends(backend: str) -> None:
    assert lower([0, 0], [1, 10**9], 0.001) == [0.0, 0.0]
    for alpha in (0.001, 0.5, 0.9):
        (only,) = lower([1], [1], alpha)
        assert 0 <= Fraction(alpha) - Fraction(only) <= tolerance(only, 1 - Fraction(alpha))
        (root,) = lower([3], [3], alpha)
        assert Fraction(root) ** 3 <= Fraction(alpha)


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_more_successes_never_lower_the_bound(backend: str, n: int, alpha: float) -> None:
    bounds = lower(range(n + 1), n, alpha)
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_a_larger_alpha_never_lowers_the_bound(backend: str) -> None:
    levels = [1e-300, 1e-12, 1e-3, 0.3, 0.499, 0.5, 0.501, 0.9, 1 - 1e-12]
    for k, n in ((1, 1), (1, 9), (5, 9), (9, 9), (700, 1000), (99_990, 100_000)):
        bounds = [lower([k], n, alpha)[0] for alpha in levels]
        assert all(a < b for a, b in itertools.pairwise(bounds)), (k, n, bounds)


def test_the_two_branches_meet_at_alpha_one_half(backend: str) -> None:
    for k, n in ((2, 3), (50, 100), (99_000, 100_000)):
        here, there = (lower([k], n, alpha)[0] for alpha in (0.5, math.nextafter(0.5, 1.0)))
        assert abs(here - there) < 1e-14


def test_shapes_and_scalars(backend: str) -> None:
    grid = drf_fast.clopper_pearson_lower(torch.tensor([[3], [5]]), torch.tensor([5, 9]), 0.05)
    assert grid.shape == (2, 2) and grid.dtype == torch.float64
    single = drf_fast.clopper_pearson_lower(5, 9, 0.05)
    assert single.shape == () and single == grid[1, 1]
    assert drf_fast.clopper_pearson_lower(torch.zeros(0, dtype=torch.int64), 9, 0.05).shape == (0,)


def test_neighbours_order_and_number_of_threads_change_nothing(backend: str) -> None:
    n = 20_000  # more rows than the reference takes at a time
    counts = torch.arange(n, -1, -1)
    whole = drf_fast.clopper_pearson_lower(counts, n, 0.001)
    assert torch.equal(whole.flip(0), drf_fast.clopper_pearson_lower(counts.flip(0), n, 0.001))
    picked = counts[::997]
    assert torch.equal(whole[::997], drf_fast.clopper_pearson_lower(picked, n, 0.001))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(whole, drf_fast.clopper_pearson_lower(counts, n, 0.001))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("successes", "trials", "alpha", "sentence"),
    [
        ([1, 7], [5, 5], 0.1, r"successes between 0 and trials, got 7 of 5 at index 1"),
        ([1, -2], [5, 5], 0.1, r"successes between 0 and trials, got -2 of 5 at index 1"),
        ([0], [0], 0.1, r"trials between 1 and 2\^53, got 0 at index 0"),
        ([0], [2**53 + 1], 0.1, r"trials between 1 and 2\^53, got 9007199254740993 at index 0"),
    ],
)
def test_impossible_counts_are_refused(
    backend: str, successes: list[int], trials: list[int], alpha: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        lower(successes, trials, alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, 2.0, math.nan, math.inf])
def test_alpha_that_is_no_probability_is_refused(backend: str, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        lower([3], [5], alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_the_raw_operation_refuses_such_an_alpha_too(alpha: float) -> None:
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected 0 < alpha < 1, got"):
        bounds_reference.clopper_pearson_lower(one, one, torch.tensor(alpha, dtype=torch.float64))


@pytest.mark.parametrize("k, n", [(6004, 18056), (7743, 27551), (11902, 33248), (18079, 48862)])
def test_the_rounding_of_k_by_n_is_allowed_for(backend: str, k: int, n: int) -> None:
    """In these, three roundings add up to more than one unit in the last place."""
    assert_safe_and_tight(k, n, 0.001, lower([k], n, 0.001)[0])
