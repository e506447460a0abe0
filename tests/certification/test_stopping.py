"""The budgets: what stopping costs and saves, and that the certificate errs with alpha at most.

Simulated runs stop as each rule says, or as an adversary would who knows the truth. The same check
has to reject certificates with a planted mistake.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

import drf_fast
from drf_fast.certification import stopping
from drf_fast.certification.anytime import anytime_lower, anytime_upper, radius_from_bound
from drf_fast.certification.stopping import Certificate, Decide, Fixed, Rule, Tolerance, certificate

OPERATIONS = ("clopper_pearson_lower", "certified_radius")

N, BATCH, RUNS, ALPHA, SIGMA = 2000, 100, 4000, 0.05, 0.5
TRUTHS = (0.5, 0.6, 0.75, 0.841, 0.95, 0.99, 0.999)

PLAN = {"n": N, "sigma": SIGMA, "alpha": ALPHA}
FIXED = Fixed(**PLAN)
DECIDE = Decide(**PLAN, radius=0.3)
TOLERANCE = Tolerance(**PLAN, tolerance=0.08)


def radius_of(p: float) -> float:
    return SIGMA * NormalDist().inv_cdf(p)


# ------------------------------------------------------------------------------------ simulation


def counts_after_each_batch(truth: float, runs: int = RUNS) -> np.ndarray:
    """(runs, looks) successes so far."""
    draw = np.random.default_rng(round(1000 * truth))
    return draw.binomial(BATCH, truth, (runs, N // BATCH)).cumsum(1)


def stopped(rule: Rule, truth: float) -> tuple[np.ndarray, np.ndarray]:
    """Count and samples drawn at the end of each run."""
    stops = functools.cache(rule.stops)
    counts = counts_after_each_batch(truth)
    last = np.full(RUNS, counts.shape[1] - 1)
    for look in reversed(range(counts.shape[1] - 1)):
        enough = {k: stops(int(k), (look + 1) * BATCH) for k in np.unique(counts[:, look])}
        last[[enough[k] for k in counts[:, look]]] = look
    return counts[np.arange(RUNS), last], (last + 1) * BATCH


def violations(rule: Rule, truth: float) -> int:
    """Runs of the rule whose certificate is wrong."""
    final = functools.cache(rule.final)
    return sum(
        final(int(k), int(t)).p_lower > truth for k, t in zip(*stopped(rule, truth), strict=True)
    )


def violations_of_an_adversary(rule: Rule, truth: float) -> int:
    """Runs in which some batch could have been the last of a wrong certificate."""
    counts = counts_after_each_batch(truth)
    wrong = np.zeros(RUNS, dtype=bool)
    for look in range(counts.shape[1]):
        wrong |= counts[:, look] >= first_wrong(rule, truth, (look + 1) * BATCH)
    return int(wrong.sum())


def first_wrong(rule: Rule, truth: float, trials: int) -> int:
    """The least count of a certificate above the truth; trials + 1 if there is none."""
    return bisect.bisect_right(
        range(trials + 1), truth, key=lambda count: rule.final(count, trials).p_lower
    )


def is_refuted(wrong: int, runs: int = RUNS) -> bool:
    """Whether the runs prove an error above ALPHA, themselves with error 1e-4."""
    return float(drf_fast.clopper_pearson_lower(wrong, runs, 1e-4)) > ALPHA


@pytest.mark.parametrize("truth", TRUTHS)
def test_an_adversary_who_stops_at_any_batch_cannot_exceed_alpha(truth: float) -> None:
    assert not is_refuted(violations_of_an_adversary(DECIDE, truth))


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("rule", [FIXED, DECIDE, TOLERANCE], ids=lambda rule: type(rule).__name__)
def test_the_rules_err_with_alpha_at_most(rule: Rule, truth: float) -> None:
    assert not is_refuted(violations(rule, truth))


@pytest.mark.parametrize("truth", [0.6, 0.75, 0.841])
def test_a_run_decided_close_to_the_truth_errs_with_alpha_at_most(truth: float) -> None:
    rule = dataclasses.replace(DECIDE, radius=radius_of(truth))
    assert not is_refuted(violations(rule, truth))


def test_twice_the_alpha_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a two-sided interval, where a library halves or doubles the level."""
    monkeypatch.setattr(stopping, "_split", lambda alpha: (0.1 * alpha, 2 * alpha))
    assert all(is_refuted(violations_of_an_adversary(DECIDE, p)) for p in (0.5, 0.6, 0.75, 0.841))
    assert is_refuted(violations(dataclasses.replace(DECIDE, radius=radius_of(0.75)), 0.75))


def test_clopper_pearson_at_every_look_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def peeking(count: int, trials: int, n: int, **_: object) -> Certificate:
        return Certificate(float(drf_fast.clopper_pearson_lower(count, trials, ALPHA)), 0.0)

    monkeypatch.setattr(stopping, "certificate", peeking)
    assert all(is_refuted(violations_of_an_adversary(DECIDE, p)) for p in TRUTHS[:-1])


def error_of_an_adversary(rule: Rule, truth: float) -> float:
    """P(some sample could have been the last of a wrong certificate), computed exactly."""
    at = np.zeros(rule.n + 1)  # P(count = k, and no wrong certificate so far)
    at[0] = 1.0
    for t in range(1, rule.n + 1):
        at[1:] = at[1:] * (1.0 - truth) + at[:-1] * truth
        at[0] *= 1.0 - truth
        at[first_wrong(rule, truth, t) :] = 0.0
    return 1.0 - float(at.sum())


def test_alpha_spent_on_both_bounds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too small an excess for a simulation: the exact error of a look after every sample."""
    rule = dataclasses.replace(DECIDE, n=300)
    for truth in (0.5, 0.65):
        assert 0.7 * ALPHA < error_of_an_adversary(rule, truth) <= ALPHA
    monkeypatch.setattr(stopping, "_split", lambda alpha: (alpha, alpha))
    for truth in (0.5, 0.65):
        assert error_of_an_adversary(rule, truth) > 1.15 * ALPHA


# ----------------------------------------------------------------------------------- certificates


def test_a_fixed_budget_is_clopper_pearson(backend: str) -> None:
    rule = Fixed(n=1000, sigma=0.25, alpha=0.001)
    for count in (0, 1, 400, 548, 549, 700, 999, 1000):
        p = drf_fast.clopper_pearson_lower(count, 1000, 0.001)
        radius = drf_fast.certified_radius(count, 1000, sigma=0.25, alpha=0.001)
        assert rule.final(count, 1000) == Certificate(float(p), float(radius))
        assert not rule.stops(count, 1000)


def test_the_largest_radii_of_100_000_samples(backend: str) -> None:
    n = 100_000
    whole = anytime_lower(n, n, 0.001)
    assert 3.647 < radius_from_bound(whole.complement, 1.0) < 3.648
    radii = [
        certificate(n, n, n, sigma=1.0, alpha=0.001, budget=budget).radius
        for budget in ("fixed", "anytime")
    ]
    assert 3.811 < radii[0] < 3.812
    assert 3.807 < radii[1] < 3.808
    stopped_before = certificate(n - 1, n - 1, n, sigma=1.0, alpha=0.001, budget="anytime")
    assert 3.606 < stopped_before.radius < 3.607


def test_at_n_the_larger_bound_counts_and_before_only_the_sequence() -> None:
    plan = {"sigma": SIGMA, "alpha": 0.001, "budget": "anytime"}
    early = certificate(800, 1000, 1001, **plan)
    bound = anytime_lower(800, 1000, 0.1 * 0.001)
    assert early == (bound.p, radius_from_bound(bound.complement, SIGMA))
    late = certificate(800, 1000, 1000, **plan)
    rest = 0.9 * 0.001
    assert late.p_lower == pytest.approx(
        float(drf_fast.clopper_pearson_lower(800, 1000, rest)), rel=1e-14
    )
    assert late.p_lower > early.p_lower
    assert late.radius > early.radius


def test_the_shares_never_add_up_to_more_than_alpha() -> None:
    draw = np.random.default_rng(1)
    for alpha in [*(10.0 ** -draw.uniform(0, 300, 2000)), 0.001, 0.05, 1e-300, 1 - 2**-53]:
        sequence, rest = stopping._split(alpha)
        assert sequence > 0
        assert alpha * (1 - 1e-15) <= Fraction(sequence) + Fraction(rest) <= Fraction(alpha)


@pytest.mark.parametrize("budget", ["fixed", "anytime"])
def test_no_sample_proves_nothing(budget: stopping.Budget) -> None:
    assert certificate(0, 0, 100, sigma=1.0, alpha=0.001, budget=budget) == (0.0, 0.0)


def test_the_least_alpha_is_usable_by_every_rule() -> None:
    for rule in (FIXED, DECIDE, TOLERANCE):
        if not isinstance(rule, Decide):
            assert dataclasses.replace(rule, alpha=1e-300).final(N, N).p_lower > 0.5


# ------------------------------------------------------------------------------------------ rules


def as_logged(radius: float) -> float:
    return float(Decimal(radius).quantize(Decimal("1e-12"), ROUND_FLOOR))


def test_a_yes_is_a_yes_in_the_log_too() -> None:
    """The certificate at the very edge of a yes, its radius rounded down to 12 decimals."""
    for sigma in (0.12, 0.25, 0.5, 1.0):
        for radius in (
            1e-6,
            0.001,
            0.1,
            0.3,
            math.pi / 10,
            0.5 * sigma,
            sigma,
            2 * sigma,
            3.6 * sigma,
        ):
            if radius <= 3.7 * sigma:
                rule = Decide(n=100_000, sigma=sigma, alpha=0.001, radius=radius)
                edge = radius_from_bound(rule._tail_probability, sigma)
                assert radius <= as_logged(edge) <= edge <= radius * (1 + 1e-10) + 1e-11


def test_decide_stops_at_the_first_yes_or_no_and_not_before() -> None:
    rule = Decide(n=100_000, sigma=SIGMA, alpha=0.001, radius=0.5)
    needed = NormalDist().cdf(0.5 / SIGMA)
    for trials in (1, 10, 256, 5000, 99_999):
        for count in {0, trials // 2, round(0.8 * trials), round(0.85 * trials), trials}:
            yes = anytime_lower(count, trials, 0.0001).p >= needed
            no = anytime_upper(count, trials, 0.0001).p < needed
            assert rule.stops(count, trials) == (yes or no), (count, trials)
            if trials < rule.n:
                assert (rule.final(count, trials).radius >= 0.5) == yes


def test_decide_draws_few_samples_where_the_answer_is_clear() -> None:
    """Six standard deviations of a batch from the threshold, one look or two are enough."""
    rule = Decide(n=100_000, sigma=SIGMA, alpha=0.001, radius=0.5)
    assert rule.stops(256, 256) and rule.final(256, 256).radius > 0.5
    assert rule.stops(150, 256) and rule.final(150, 256).radius < 0.5
    assert not rule.stops(215, 256)


def test_decide_draws_a_fraction_of_the_samples_in_simulated_runs() -> None:
    rule = dataclasses.replace(DECIDE, radius=radius_of(0.8))
    for truth, most in ((0.5, 0.06), (0.99, 0.06), (0.9, 0.2)):
        _, drawn = stopped(rule, truth)
        assert drawn.mean() < most * N, truth
    assert stopped(rule, 0.8)[1].mean() > 0.9 * N


def first_stop(rule: Rule, rate: float) -> int:
    """Samples drawn in batches of 200 that are won at this rate."""
    samples = range(200, rule.n, 200)
    return next((t for t in samples if rule.stops(round(rate * t), t)), rule.n)


def test_a_tolerance_stops_within_it_of_the_radius_expected_at_n() -> None:
    rule = Tolerance(n=100_000, sigma=SIGMA, alpha=0.001, tolerance=0.05)
    for rate, most in ((0.6, 4000), (0.8, 5000), (0.95, 10_000), (0.99, 25_000)):
        trials = first_stop(rule, rate)
        assert trials <= most
        expected = float(
            drf_fast.certified_radius(
                round(rate * rule.n), rule.n, sigma=SIGMA, alpha=0.9 * rule.alpha
            )
        )
        before = trials - 200
        now, earlier = (rule.final(round(rate * t), t).radius for t in (trials, before))
        assert expected - now < 0.05 <= expected - earlier


def test_all_samples_won_stop_only_a_tolerance_above_the_gap_of_both_bounds() -> None:
    for tolerance, stops in ((0.09, False), (0.11, True)):  # 0.2 sigma at n
        rule = Tolerance(n=100_000, sigma=SIGMA, alpha=0.001, tolerance=tolerance)
        assert (first_stop(rule, 1.0) < rule.n) == stops


def test_a_smaller_tolerance_needs_more_samples() -> None:
    drawn = []
    for tolerance in (0.1, 0.03, 0.01):
        rule = Tolerance(n=100_000, sigma=SIGMA, alpha=0.001, tolerance=tolerance)
        drawn.append(first_stop(rule, 0.9))
    assert 2 * drawn[0] < drawn[1] and 2 * drawn[1] < drawn[2]


def test_first_samples_around_one_half_are_no_reason_to_abstain() -> None:
    rule = Tolerance(n=100_000, sigma=SIGMA, alpha=0.001, tolerance=0.05)
    assert not rule.stops(128, 256)  # expected at n: no radius; possible: 0.2
    assert rule.stops(5000, 10_000)
    assert rule.stops(30, 256)  # far below one half, and hopeless


# ---------------------------------------------------------------------------------- bad arguments


def test_rules_are_immutable_and_compare_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIXED.n = 5  # type: ignore[misc]
    assert Fixed(**PLAN) == FIXED
    assert Decide(**PLAN, radius=0.3) == DECIDE != dataclasses.replace(DECIDE, radius=0.2)


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: Fixed(n=0, sigma=1.0, alpha=0.1), ValueError, "n must lie in 1.."),
        (lambda: Fixed(n=9, sigma=0.0, alpha=0.1), ValueError, "sigma must be finite and above 0"),
        (lambda: Fixed(n=9, sigma=1.0, alpha=1.0), ValueError, "alpha must be an error prob"),
        (lambda: Decide(**PLAN, radius=0.0), ValueError, "radius must be finite and above 0"),
        (lambda: Decide(**PLAN, radius="1"), TypeError, "radius must be a number, got str"),  # type: ignore[arg-type]
        (lambda: Decide(**PLAN, radius=9.0), ValueError, "at most 1.47., which 2000 of 2000"),
        (lambda: Decide(n=90, sigma=1.0, alpha=0.001, radius=1.44), ValueError, "at most 1.439,"),
        (lambda: Tolerance(**PLAN, tolerance=-1), ValueError, "tolerance must be finite and above"),
    ],
)
def test_bad_arguments_of_the_rules(
    build: Callable[[], Rule], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        build()


@pytest.mark.parametrize(
    ("row", "budget", "sentence"),
    [
        ((5, 9, 8), "anytime", "trials must be at most n, got 9 of 8; pass the n of the run"),
        ((5, 9, 10), "fixed", "a fixed budget proves something at all of its n .* got 9 of 10"),
        ((9, 5, 10), "anytime", "successes must lie between 0 and trials, got 9 of 5"),
        ((5, 9, 10), "free", "budget must be one of 'fixed', 'anytime', got 'free'"),
    ],
)
def test_rows_that_no_run_can_have_logged(
    row: tuple[int, int, int], budget: stopping.Budget, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        certificate(*row, sigma=0.5, alpha=0.001, budget=budget)
