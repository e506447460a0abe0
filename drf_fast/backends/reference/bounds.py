"""Clopper-Pearson bound and certified radius in plain torch: fallback and reference.

The same algorithm, step by step, as csrc/common/{clopper_pearson,certified_radius}.h, where the
error analysis is; functions that exist in both have one name. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from drf_fast.backends.reference.tail import (
    QUANTILE_ERROR,
    UNIT,
    Split,
    binomial_tail,
    central_normal_quantile,
    split_by_p_or_s,
    stirling_error,
    tail_log_error,
    upper_normal_quantile,
)
from drf_fast.config.limits import MOST_TRIALS

_CHUNK = 8192  # rows at a time, to bound memory: the quadrature makes 28 values of each

# ---------------------------------------------------------------------------- clopper_pearson.h


class _Level(NamedTuple):
    """Quantities that depend on alpha only; for alpha > 1/2 the mirrored problem is solved."""

    small: float  # min(alpha, 1 - alpha)
    log_small: float
    log_rest: float  # log(1 - small)
    z: float  # P(N(0, 1) > z) = small
    mirrored: bool


class _LowerBound(NamedTuple):
    p: Tensor  # <= p_L
    complement: Tensor  # >= 1 - p_L
    excess: Tensor  # <= p_L - 1/2


def _make_level(alpha: float) -> _Level:
    small = 1.0 - alpha if alpha > 0.5 else alpha
    column = torch.tensor([small], dtype=torch.float64, device="cpu")
    quantile = (
        central_normal_quantile(0.5 - column) if small > 0.4 else upper_normal_quantile(column)
    )
    return _Level(small, math.log(small), math.log1p(-small), quantile.item(), alpha > 0.5)


def _start_of_root(k: Tensor, m: Tensor, z: float) -> Tensor:
    a, b = 1.0 / (2.0 * k - 1.0), 1.0 / (2.0 * m + 1.0)
    h = 2.0 / (a + b)
    r = (z * z - 3.0) / 6.0
    half_logit = z * torch.sqrt(h + r) / h - (b - a) * (r + 5.0 / 6.0 - 2.0 / (3.0 * h))
    odds = k * torch.exp(-2.0 * half_logit)
    return odds / (odds + (m + 1.0))


def _solve_tail(k: Tensor, m: Tensor, n: Tensor, level: _Level) -> tuple[Split, Tensor]:
    """The p with P(Bin(n, p) >= k) = level.small, for 2 <= k < n; the error margin of p and s."""
    phat = k / n
    stirling = stirling_error(n) - stirling_error(k) - stirling_error(m)
    start = _start_of_root(k, m, level.z)
    at = split_by_p_or_s(start < 0.5 * phat, start, phat - start, k, m, n)
    margin = torch.zeros_like(k)
    rows = torch.arange(k.numel(), device=k.device)  # those that have not converged yet
    for _ in range(20):
        here = Split(at.p[rows], at.q[rows], at.s[rows])
        counts = (k[rows], m[rows], n[rows])
        t = binomial_tail(*counts, here, stirling[rows], level.log_small)
        y, mu, kappa = t.y, t.slope, t.bend
        e = mu - 1.0
        c3 = kappa + mu * e + e * e
        c4 = t.bend_slope + kappa * (6.0 * e + mu) + e * (4.0 * mu * e + e * e + mu * mu)
        series = t.unit * y * (1.0 + y * (e / 2.0 + y * (c3 / 6.0 + y * c4 / 24.0)))
        newton = -torch.expm1(-t.unit * y)
        shift = here.p * torch.where(y.abs() <= 0.25, series, newton)
        p = here.p - shift
        new = split_by_p_or_s(p < 0.5 * phat[rows], p, here.s + shift, *counts)
        for whole, part in zip(at, new, strict=True):
            whole[rows] = part
        margin[rows] = 1.01 * new.p * t.unit * tail_log_error(t.deviance, level.log_small)
        rows = rows[y.abs() > 1e-3]
        if rows.numel() == 0:
            break
    return at, margin + 2.0 * UNIT * torch.minimum(at.p, at.s.abs())


def _next_below(x: Tensor) -> Tensor:
    """The largest float64 below x > 0; 0 at 0."""
    return torch.nextafter(x, torch.zeros_like(x))


def _one_minus_down(x: Tensor) -> Tensor:
    rounded = 1.0 - x
    return torch.where(1.0 - rounded < x, _next_below(rounded), rounded)


def _safe_bound(p: Tensor, complement: Tensor, excess: Tensor) -> _LowerBound:
    p = torch.where(complement <= 0.5, _one_minus_down(complement), p.clamp(min=0.0))
    return _LowerBound(p, complement.clamp(max=1.0), excess)


def _closed_form_bound(k: Tensor, n: Tensor, level: _Level) -> _LowerBound:
    """At k = n, where p_L = alpha^(1/n), and at k = 1, where 1 - p_L = (1 - alpha)^(1/n)."""
    log_alpha, log_rest = level.log_small, level.log_rest
    if level.mirrored:
        log_alpha, log_rest = log_rest, log_alpha
    all_successes = k == n
    exponent = torch.where(all_successes, k.new_tensor(log_alpha), k.new_tensor(log_rest)) / n
    power, rest = torch.exp(exponent), -torch.expm1(exponent)
    power = torch.where(exponent < -708.0, 0.0, power)  # subnormal: too few digits for a margin
    power_error = UNIT * power * (8.0 - 6.0 * exponent)
    rest_error = UNIT * rest * 12.0
    p = torch.where(all_successes, power - power_error, rest - rest_error)
    complement = torch.where(all_successes, rest + rest_error, power + power_error)
    return _safe_bound(p, complement, (0.5 - complement) - UNIT)


def _inner_bound(k: Tensor, n: Tensor, level: _Level) -> _LowerBound:
    """For 2 <= k < n."""
    m = n - k
    if not level.mirrored:
        at, margin = _solve_tail(k, m, n, level)
        s = at.s + margin
        half = 0.5 * (k - m) / n
        rounding = torch.where(at.p < at.s, 4.0 * UNIT * at.p, 4.0 * UNIT * k / n)
        excess = (half - s) - 2.0 * UNIT * (half.abs() + s.abs())
        return _safe_bound(at.p - margin - rounding, (m / n + s) * (1.0 + 8.0 * UNIT), excess)
    k, m = n - k + 1.0, k - 1.0
    at, margin = _solve_tail(k, m, n, level)
    s = at.s - margin
    half = 0.5 * (m - k) / n
    rounding = torch.where(at.p < at.s, 4.0 * UNIT * at.p, 4.0 * UNIT * k / n)
    excess = (half + s) - 4.0 * UNIT * (half.abs() + s.abs())
    return _safe_bound((m / n + s) * (1.0 - 8.0 * UNIT), at.p + margin + rounding, excess)


def _clopper_pearson_bound(k: Tensor, n: Tensor, level: _Level) -> _LowerBound:
    bound = _LowerBound(torch.zeros_like(k), torch.ones_like(k), torch.full_like(k, -0.5))
    closed = (k > 0.0) & ((k == n) | (k == 1.0))
    for rows, part in (
        (closed, _closed_form_bound),
        ((k > 1.0) & (k < n), _inner_bound),
    ):
        if rows.any():
            for whole, values in zip(bound, part(k[rows], n[rows], level), strict=True):
                whole[rows] = values
    return bound


# --------------------------------------------------------------------------- certified_radius.h


def _certified_radius_of(bound: _LowerBound, sigma: float) -> Tensor:
    central = bound.excess <= 0.1
    quantile = torch.where(
        central,
        central_normal_quantile(bound.excess.clamp(0.0, 0.1)),
        upper_normal_quantile(bound.complement.clamp(max=0.4)),
    )
    radius = _next_below(sigma * (quantile * (1.0 - QUANTILE_ERROR)))
    return torch.where(bound.excess > 0.0, radius, 0.0)


# ------------------------------------------------------------------------------- the operations


def _check(operation: str, successes: Tensor, trials: Tensor, alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(
            f"{operation}: expected 0 < alpha < 1, got {alpha:g}; pass the error probability, "
            "0.001 for example"
        )
    bad = (trials < 1) | (trials > MOST_TRIALS)
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"{operation}: expected trials between 1 and 2^53, got {int(trials[index])} at index "
            f"{index}; pass the number of samples drawn"
        )
    bad = (successes < 0) | (successes > trials)
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"{operation}: expected successes between 0 and trials, got {int(successes[index])} of "
            f"{int(trials[index])} at index {index}; pass counts of the same samples"
        )


def _by_chunks(
    successes: Tensor, trials: Tensor, alpha: float, finish: Callable[[_LowerBound], Tensor]
) -> Tensor:
    level = _make_level(alpha)
    out = torch.empty(successes.numel(), dtype=torch.float64, device=successes.device)
    for part, k, n in zip(
        out.split(_CHUNK),
        successes.reshape(-1).split(_CHUNK),
        trials.reshape(-1).split(_CHUNK),
        strict=True,
    ):
        part.copy_(finish(_clopper_pearson_bound(k.double(), n.double(), level)))
    return out.reshape(successes.shape)


def clopper_pearson_lower(successes: Tensor, trials: Tensor, alpha: Tensor) -> Tensor:
    """float64 p <= p_L with P(Bin(trials, p_L) >= successes) = alpha; the shape of successes.

    Below p_L by at most 1e-12 (1 - p_L) + 2 ulp for alpha from 1e-12 to 1 - 1e-12.

    Raises:
        ValueError: alpha outside (0, 1), trials outside [1, 2^53], successes outside [0, trials].

    Reference: Clopper and Pearson 1934.
    """
    level = float(alpha)
    _check("clopper_pearson_lower", successes.reshape(-1), trials.reshape(-1), level)
    return _by_chunks(successes, trials, level, lambda bound: bound.p)


def certified_radius(successes: Tensor, trials: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """float64 R <= sigma * Phi^-1(p_L), in the units of sigma; 0 where p_L <= 1/2.

    Raises:
        ValueError: as ``clopper_pearson_lower``; sigma not finite or not above 0.

    Reference: Cohen, Rosenfeld and Kolter 2019, Algorithm 1 (CERTIFY).
    """
    scale, level = float(sigma), float(alpha)
    if not 0.0 < scale < math.inf:
        raise ValueError(
            f"certified_radius: expected a finite sigma > 0, got {scale:g}; pass the standard "
            "deviation of the noise in pixel units"
        )
    _check("certified_radius", successes.reshape(-1), trials.reshape(-1), level)
    return _by_chunks(successes, trials, level, lambda bound: _certified_radius_of(bound, scale))
