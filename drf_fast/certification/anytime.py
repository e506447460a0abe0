"""Anytime-valid bounds of a probability: they hold at all sample sizes at once, rounded safely.

Clopper-Pearson holds at one sample size that was fixed beforehand. With these bounds the votes may
be examined after every batch and sampling may stop at any time, for any reason. With A successes
among t samples, the Beta(1/2, 1/2) mixture of the likelihood ratios against p is

    K_t(p) = B(A + 1/2, t - A + 1/2) / (B(1/2, 1/2) p^A (1 - p)^(t - A)),

a nonnegative martingale with mean 1 under the true p; so P(K_t(p) >= 1/alpha for some t) <= alpha
by Ville's inequality. The p with K_t(p) < 1/alpha are an interval around A/t: ``anytime_lower`` and
``anytime_upper`` are its ends, and both hold together, for all t, with error alpha.

Reference:
    Ville 1939; Robbins 1970, Statistical methods related to the law of the iterated logarithm;
    Voracek 2024, Treatment of statistical estimation problems in randomized smoothing for
    adversarial robustness.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch

from drf_fast.backends.reference.tail import (
    QUANTILE_ERROR,
    STIRLING_SERIES,
    STIRLING_SMALL,
    UNIT,
    central_normal_quantile,
    upper_normal_quantile,
)
from drf_fast.config.limits import LEAST_ALPHA, MOST_TRIALS
from drf_fast.ops import checks as check

_LEAST_LEVEL = 1e-302  # alpha is divided: below LEAST_ALPHA, that of a certificate


class BoundPair(NamedTuple):
    """A bound of a probability p, rounded safely, and 1 - p, separately to full precision."""

    p: float
    complement: float


def anytime_lower(successes: int, trials: int, alpha: float) -> BoundPair:
    """The smallest p with K_t(p) < 1/alpha: a lower bound valid at all sample sizes together.

    Args:
        successes: 0 <= successes <= trials.
        trials: samples so far, 1 to 2^53.
        alpha: error probability in [1e-302, 1) of the whole sequence, both sides.

    Returns:
        p, never above the true bound, and complement, never below 1 - bound and within
        1e-13 (successes/trials - p) + 2e-15 complement of it; p is 0 where it is below 1e-300.

    Raises:
        TypeError, ValueError: counts or alpha of the wrong type or out of range.
    """
    check_counts(successes, trials)
    return _lower(successes, trials - successes, check_level(alpha, _LEAST_LEVEL))


def anytime_upper(successes: int, trials: int, alpha: float) -> BoundPair:
    """The largest p with K_t(p) < 1/alpha; p is never below the true bound. As ``anytime_lower``.

    Computed as the lower bound for failures: K is unchanged when successes and failures swap.
    """
    check_counts(successes, trials)
    complement, p = _lower(trials - successes, successes, check_level(alpha, _LEAST_LEVEL))
    return BoundPair(p, complement)


# With p = (k/t) e^-u and m = t - k, the equation K_t(p) = 1/alpha reads D(u) = L for u > 0, where
#   D = t KL(k/t, p) = k (u - x) + m (y - log(1 + y)),  x = 1 - e^-u,  y = k x / m,
#   L = log(1/alpha) + C,  C = log(pi t / 2)/2 + d(t) + c(k) + c(m),
# the term of m being k x at m = 0, d Stirling's error, and c(k) = d(k) - d(2k), c(0) = log(2)/2
# (duplication formula of the gamma function). p and 1 - p = (m + k x)/t keep all their digits in u,
# all terms of D are positive, and L > C >= log 2, so nothing cancels. D is convex: Newton's method
# converges from the right without passing the root, and one step from the left leads to its right.
#
# Safety: with elementary functions within 2 ulp, the computed D and L have relative errors below 80
# and 16 units of rounding. The u returned has a computed D above L by 256 units at least, so it is
# above the root and p below; and by 512 at most, which bounds the error of u, as D grows at least
# like u.
_MARGIN = 256.0 * UNIT


def _lower(k: int, m: int, alpha: float) -> BoundPair:
    if k == 0:
        return BoundPair(0.0, 1.0)
    t = k + m
    least = (_regret(k, m) - math.log(alpha)) * (1.0 + _MARGIN)
    target, most = least * (1.0 + 0.5 * _MARGIN), least * (1.0 + _MARGIN)
    u = math.sqrt(2.0 * target * m / k / t) + target / k  # normal approximation; exact at m = 0
    value, slope = _deviance(k, m, u)
    while not least <= value <= most:
        u -= (value - target) / slope
        value, slope = _deviance(k, m, u)

    p = k * math.exp(-u) / t * (1.0 - 8.0 * UNIT)
    complement = (m - k * math.expm1(-u)) / t * (1.0 + 8.0 * UNIT)
    if complement <= 0.5:
        p = math.nextafter(1.0 - complement, 0.0)
    return BoundPair(p if p > 1e-300 else 0.0, min(complement, 1.0))


def _deviance(k: int, m: int, u: float) -> tuple[float, float]:
    """D and dD/du."""
    x = -math.expm1(-u)
    value = k * (_x_minus_log1p(-x) if u < 0.2 else u - x)
    value += m * _x_minus_log1p(k * x / m) if m else k * x
    return value, (k + m) * (k * x / (m + k * x))


def _x_minus_log1p(x: float) -> float:
    """x - log(1 + x) without cancellation, for x >= -0.2."""
    if x > 0.2:
        return x - math.log1p(x)
    r = x / (2.0 + x)
    z = r * r
    series = 1.0 / 17.0
    for odd in (15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0):
        series = series * z + 1.0 / odd
    return r * (x - 2.0 * z * series)


def _regret(k: int, m: int) -> float:
    """C = -log K_t(k/t)."""
    t = k + m
    return 0.5 * math.log(0.5 * math.pi * t) + _stirling_error(t) + _half_error(k) + _half_error(m)


def _half_error(k: int) -> float:
    """k log k - k + log(2 pi)/2 - log Gamma(k + 1/2)."""
    return _stirling_error(k) - _stirling_error(2 * k) if k else 0.5 * math.log(2.0)


def _stirling_error(k: int) -> float:
    if k < 16:
        return STIRLING_SMALL[k]
    r, series = 1.0 / k, 0.0
    for coefficient in STIRLING_SERIES:
        series = series * r * r + coefficient
    return series * r


def radius_from_bound(complement: float, sigma: float) -> float:
    """sigma * Phi^-1(1 - complement), never above its true value; 0 where complement >= 1/2.

    Args:
        complement: 1 - p_lower, in (0, 1].
        sigma: noise level in pixel units, above 0.

    Raises:
        TypeError, ValueError: bad arguments.
    """
    complement, sigma = check_positive(complement, "complement"), check_positive(sigma, "sigma")
    if complement > 1.0:
        raise ValueError(f"complement must be 1 - p of a probability p, got {complement}")
    if complement >= 0.5:
        return 0.0
    column = torch.tensor([complement], dtype=torch.float64, device="cpu")
    quantile = (
        central_normal_quantile(0.5 - column)
        if complement >= 0.4
        else upper_normal_quantile(column)
    )
    return math.nextafter(sigma * (float(quantile) * (1.0 - QUANTILE_ERROR)), 0.0)


def check_counts(successes: Any, trials: Any, fewest: int = 1) -> None:
    check.count(trials, "trials", minimum=fewest, maximum=MOST_TRIALS)
    if check.count(successes, "successes", minimum=0, maximum=MOST_TRIALS) > trials:
        raise ValueError(
            f"successes must lie between 0 and trials, got {successes} of {trials}; pass counts "
            "of the same samples"
        )


def check_level(alpha: Any, least: float = LEAST_ALPHA) -> float:
    level = check_positive(alpha, "alpha")
    if not least <= level < 1.0:
        raise ValueError(f"alpha must be an error probability in [{least:g}, 1), got {alpha}")
    return level


def check_positive(value: Any, name: str) -> float:
    if getattr(value, "ndim", None) == 0:  # a 0-dim tensor or array
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    number = float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value}")
    return number
