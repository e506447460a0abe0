"""Budgets: how many samples a certificate may cost, when to stop, and which bound then holds.

The fixed budget draws n samples and takes the Clopper-Pearson bound at alpha. The anytime budget
may stop after any batch. The bound that allows this (``anytime``) is weaker than Clopper-Pearson at
one fixed n: if all of 100,000 samples are successes at alpha 0.001, it gives 3.648 sigma instead of
3.811. So alpha is divided: a tenth is spent on the anytime bound, the rest on one Clopper-Pearson
bound that is taken only if the run reaches n, where the larger of both counts (3.808 sigma). The
probability that either fails is at most alpha, by the union bound, however the run was stopped.

The anytime bound is taken at the last batch. The largest over all batches would hold as well, but
the last can be recomputed from a log: count, samples drawn, n and alpha.

The class must have been chosen on other samples.

Reference:
    Clopper, Pearson 1934; Cohen, Rosenfeld, Kolter 2019, CERTIFY; Voracek 2024.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import ClassVar, NamedTuple, get_args

from drf_fast import functional
from drf_fast.certification.anytime import (
    BoundPair,
    anytime_lower,
    anytime_upper,
    check_counts,
    check_level,
    check_positive,
    radius_from_bound,
)
from drf_fast.config.choices import Budget
from drf_fast.config.limits import MOST_TRIALS
from drf_fast.ops import checks as check

_SEQUENCE_SHARE = 0.1  # share of alpha that is spent on the anytime bound
_LOG_DECIMAL = 1e-12  # logs round radii down to multiples of this


def reduced_alpha(alpha: float, n: int, distance: float) -> float:
    """alpha - n distance, rounded down: n samples are within n distance of Gaussian ones (TV).

    Raises:
        ValueError: it is not above 0.
    """
    if distance == 0.0:
        return alpha
    cost = math.nextafter(n * distance, math.inf)
    left = math.nextafter(alpha - cost, 0.0)
    if not left > 0.0:
        raise ValueError(
            f"alpha must be above {cost:.3g}, by which {n} samples of sound noise may differ from "
            f"true ones, got {alpha:g}; raise alpha or lower n"
        )
    return left


class Certificate(NamedTuple):
    """The proved lower bound p >= p_lower and the L2 radius from it; 0 where p_lower <= 1/2."""

    p_lower: float
    radius: float


def certificate(
    count: int,
    trials: int,
    n: int,
    *,
    sigma: float,
    alpha: float,
    budget: Budget,
    distance: float = 0.0,
) -> Certificate:
    """The certificate of a run, from the numbers that its log records.

    Args:
        count: samples of the chosen class.
        trials: samples drawn, 0 to n; 0 proves nothing, below n the run stopped early.
        n: samples planned.
        sigma: noise level in pixel units, above 0.
        alpha: error probability of the certificate.
        budget: "fixed", Clopper-Pearson at alpha; "anytime", alpha divided between both bounds.
        distance: the most by which a probability under the noise that was drawn differs from the
            Gaussian's (total variation); the bounds are lowered by it.

    Raises:
        TypeError, ValueError: bad arguments; a fixed budget with fewer than n samples.
    """
    check.choice(budget, "budget", get_args(Budget))
    check.count(n, "n", maximum=MOST_TRIALS)
    check_counts(count, trials, fewest=0)
    alpha, sigma = check_level(alpha), check_positive(sigma, "sigma")
    if trials > n:
        raise ValueError(f"trials must be at most n, got {trials} of {n}; pass the n of the run")
    if trials == 0:
        return Certificate(0.0, 0.0)
    if budget == "fixed":
        if trials < n:
            raise ValueError(
                f"a fixed budget proves something at all of its n samples only, got {trials} of "
                f"{n}; draw the rest, or certify with the anytime budget"
            )
        return _clopper_pearson(count, n, sigma, alpha, distance)
    sequence, rest = _split(alpha)
    bound = _minus_distance(anytime_lower(count, trials, sequence), distance)
    stopped = Certificate(bound.p, radius_from_bound(bound.complement, sigma))
    if trials < n:
        return stopped
    return Certificate(*map(max, stopped, _clopper_pearson(count, n, sigma, rest, distance)))


def _clopper_pearson(
    count: int, n: int, sigma: float, alpha: float, distance: float
) -> Certificate:
    p = functional.clopper_pearson_lower(count, n, alpha)
    if distance > 0.0:
        # 1 - p is exact for p >= 1/2. Having rounded p down costs 2^-53, a tenth of the distance of
        # an image of 100 pixels.
        complement = 1.0 - float(p)
        if float(p) < 0.5:
            complement = math.nextafter(complement, 1.0)
        bound = _minus_distance(BoundPair(float(p), complement), distance)
        return Certificate(bound.p, radius_from_bound(bound.complement, sigma))
    return Certificate(
        float(p), float(functional.certified_radius(count, n, sigma=sigma, alpha=alpha))
    )


def _minus_distance(bound: BoundPair, distance: float) -> BoundPair:
    """The bound lowered by ``distance``, p and complement rounded safely."""
    if distance == 0.0:
        return bound
    return BoundPair(
        max(0.0, math.nextafter(bound.p - distance, -math.inf)),
        min(1.0, math.nextafter(bound.complement + distance, math.inf)),
    )


def _split(alpha: float) -> tuple[float, float]:
    """The shares of alpha of the anytime and the Clopper-Pearson bound, exact sum at most alpha."""
    sequence = _SEQUENCE_SHARE * alpha
    return sequence, math.nextafter(alpha - sequence, 0.0)


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """When to stop sampling for one image, at n samples at the latest, and the certificate then.

    Args:
        n: samples planned.
        sigma: noise level in pixel units, above 0.
        alpha: error probability of the certificate, in [1e-300, 1).
        distance: total variation distance of the noise from Gaussian noise, see ``certificate``.

    Raises:
        TypeError, ValueError: bad arguments.
    """

    n: int
    sigma: float
    alpha: float
    distance: float = 0.0
    budget: ClassVar[Budget]

    def __post_init__(self) -> None:
        check.count(self.n, "n", maximum=MOST_TRIALS)
        check_positive(self.sigma, "sigma")
        check_level(self.alpha)

    @abstractmethod
    def stops(self, count: int, trials: int) -> bool:
        """Whether to stop after ``count`` votes for the class in ``trials``; may be called at any
        time.
        """

    def final(self, count: int, trials: int) -> Certificate:
        """The certificate, whether the run stopped early or not."""
        return certificate(
            count,
            trials,
            self.n,
            sigma=self.sigma,
            alpha=self.alpha,
            budget=self.budget,
            distance=self.distance,
        )


@dataclass(frozen=True, kw_only=True)
class Fixed(Rule):
    """Draw all n samples: Clopper-Pearson at alpha, as ``functional.certified_radius``."""

    budget: ClassVar[Budget] = "fixed"

    def stops(self, count: int, trials: int) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Decide(Rule):
    """Stop as soon as 'the certified radius is at least ``radius``' is decided.

    Yes: the anytime lower bound proves it. No: the anytime upper bound excludes it, which needs no
    share of alpha, since giving up only costs power. The certificate's radius is as valid as any
    other, but a run that stops with yes proves little more than ``radius``.

    Args:
        radius: in pixel units, above 0 and at most what n of n samples prove.
    """

    radius: float
    budget: ClassVar[Budget] = "anytime"

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = self.final(self.n, self.n).radius
        if check_positive(self.radius, "radius") > reach:
            raise ValueError(
                f"radius must be at most {math.floor(1000 * reach) / 1000:.3f}, which {self.n} of "
                f"{self.n} samples prove at "
                f"sigma {self.sigma:g} and alpha {self.alpha:g}, got {self.radius}; raise n"
            )

    @cached_property
    def _tail_probability(self) -> float:
        """Slightly below P(N(0, sigma^2) > radius): a complement of at most this is a yes.

        Below by enough that the certificate's radius is not less than ``radius`` after a log has
        rounded it down.
        """
        threshold = (self.radius + _LOG_DECIMAL) * (1.0 + _LOG_DECIMAL)
        tail = 0.5 * math.erfc(threshold / self.sigma * math.sqrt(0.5))
        return max(0.0, tail - self.distance * (1.0 + _LOG_DECIMAL))

    def stops(self, count: int, trials: int) -> bool:
        sequence, _ = _split(self.alpha)
        if trials - count <= trials * self._tail_probability:
            return anytime_lower(count, trials, sequence).complement <= self._tail_probability
        return anytime_upper(count, trials, sequence).complement > self._tail_probability


@dataclass(frozen=True, kw_only=True)
class Tolerance(Rule):
    """Stop when the remaining samples would add less than ``tolerance`` to the radius.

    What they would add is estimated from the rate so far: the radius that Clopper-Pearson would
    prove at n from count/trials * n successes, minus the current one. A run that proves no radius
    yet stops only when the anytime upper bound on the radius is below ``tolerance``, so that a few
    unlucky first samples do not make it abstain. Where all samples are successes, both bounds are
    0.2 sigma apart at n = 100,000, alpha = 0.001, so a tolerance below that draws all n there.

    Args:
        tolerance: in pixel units, above 0.
    """

    tolerance: float
    budget: ClassVar[Budget] = "anytime"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.tolerance, "tolerance")

    def stops(self, count: int, trials: int) -> bool:
        sequence, rest = _split(self.alpha)
        current = self._radius(anytime_lower(count, trials, sequence))
        if current <= 0.0:
            return self._radius(anytime_upper(count, trials, sequence)) < self.tolerance
        expected = functional.certified_radius(
            count * self.n // trials, self.n, sigma=self.sigma, alpha=rest
        )
        return float(expected) - current < self.tolerance

    def _radius(self, bound: BoundPair) -> float:
        """The radius of a bound, rounded to nearest: good for stopping, not for a certificate."""
        if not 0.0 < bound.complement < 1.0:
            return math.copysign(math.inf, 0.5 - bound.complement)
        return -self.sigma * NormalDist().inv_cdf(bound.complement)


def rule(
    n: int,
    sigma: float,
    alpha: float,
    distance: float = 0.0,
    radius: float | None = None,
    tolerance: float | None = None,
) -> Rule:
    """``Decide`` with a radius, ``Tolerance`` with a tolerance, ``Fixed`` without both.

    Args:
        n, sigma, alpha, distance: see ``Rule``.
        radius: the radius to be decided, in pixel units.
        tolerance: what n samples may still add to the radius at the stop, in pixel units.

    Raises:
        TypeError, ValueError: bad arguments, or both.
    """
    sigma, alpha = check_positive(sigma, "sigma"), check_level(alpha)
    if radius is not None and tolerance is not None:
        raise ValueError(
            "radius and tolerance are two ways to stop: expected one of them, got both"
        )
    if radius is not None:
        radius = check_positive(radius, "radius")
        return Decide(n=n, sigma=sigma, alpha=alpha, distance=distance, radius=radius)
    if tolerance is not None:
        tolerance = check_positive(tolerance, "tolerance")
        return Tolerance(n=n, sigma=sigma, alpha=alpha, distance=distance, tolerance=tolerance)
    return Fixed(n=n, sigma=sigma, alpha=alpha, distance=distance)
