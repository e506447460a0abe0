"""The numerical core of bounds.py: binomial tail and normal quantile in plain torch.

The same algorithm, step by step, as csrc/common/{elementary,half_line_rule,binomial_tail,
normal_quantile}.h, where the error analysis is; functions in both have one name. Here exp and log
are torch's (within 1 ulp, less than the bounds assumed there), and tensors of rows replace the
loops. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-53
_SQRT_2PI = 2.5066282746310005

# ----------------------------------------------------------------------------- half_line_rule.h

_TAIL_EXPONENT = 37.0
_ABSCISSAE = (  # of the 28-point Gauss-Legendre rule on [-1, 1], positive half
    0.0550792898840342704,
    0.164569282133380771,
    0.272061627635178078,
    0.37625151608907871,
    0.475874224955118261,
    0.569720471811401719,
    0.656651094038864961,
    0.735610878013631772,
    0.805641370917179171,
    0.865892522574395049,
    0.915633026392132074,
    0.954259280628938197,
    0.981303165370872754,
    0.99644249757395445,
)
_WEIGHTS = (
    0.110047013016475196,
    0.108711192258294135,
    0.106055765922846418,
    0.10211296757806077,
    0.0969306579979299159,
    0.0905717443930328409,
    0.0831134172289012184,
    0.074646214234568779,
    0.0652729239669995958,
    0.0551073456757167454,
    0.0442729347590042278,
    0.03290142778230438,
    0.0211321125927712598,
    0.00912428259309451774,
)


def integrate_half_line(length: Tensor, integrand: Callable[[Tensor], Tensor]) -> Tensor:
    """The integral over [0, length] of an integrand (rows, 28) -> (rows, 28)."""
    abscissae = length.new_tensor([-x for x in reversed(_ABSCISSAE)] + list(_ABSCISSAE))
    weights = length.new_tensor(_WEIGHTS[::-1] + _WEIGHTS)
    values = integrand(length[:, None] * (0.5 + 0.5 * abscissae))
    return length * 0.5 * (weights * values).sum(1)


# --------------------------------------------------------------------------------- elementary.h


def x_minus_log1p(x: Tensor) -> Tensor:
    """x - log(1 + x) without cancellation, for x > -1."""
    r = x / (2.0 + x)
    z = r * r
    total = torch.full_like(x, 1.0 / 33.0)
    for odd in range(31, 1, -2):
        total = total * z + 1.0 / odd
    near = r * (x - 2.0 * z * total)
    return torch.where((x >= -0.5) & (x <= 1.0), near, x - torch.log(1.0 + x))


# ------------------------------------------------------------------------------ binomial_tail.h

STIRLING_SMALL = (
    0.0,
    0.0810614667953272582,
    0.0413406959554092941,
    0.0276779256849983391,
    0.0207906721037650931,
    0.0166446911898211922,
    0.0138761288230707480,
    0.0118967099458917701,
    0.0104112652619720965,
    0.00925546218271273292,
    0.00833056343336287126,
    0.00757367548795184079,
    0.00694284010720952987,
    0.00640899418800420707,
    0.00595137011275884774,
    0.00555473355196280137,
)
STIRLING_SERIES = (
    -691.0 / 360360.0,
    1.0 / 1188.0,
    -1.0 / 1680.0,
    1.0 / 1260.0,
    -1.0 / 360.0,
    1.0 / 12.0,
)


class Split(NamedTuple):
    """p, q = 1 - p and s = k/n - p, computed from the smaller one of p and s."""

    p: Tensor
    q: Tensor
    s: Tensor


class TailPoint(NamedTuple):
    y: Tensor  # log(T / level)
    unit: Tensor  # d log p / d log T
    deviance: Tensor
    slope: Tensor  # -d log G / df and its two derivatives at 0, in units of `unit`
    bend: Tensor
    bend_slope: Tensor


def tail_log_error(deviance: Tensor, log_level: float) -> Tensor:
    return UNIT * (96.0 + 19.0 * deviance + 4.0 * abs(log_level))


def stirling_error(k: Tensor) -> Tensor:
    table = k.new_tensor(STIRLING_SMALL)
    r = 1.0 / k.clamp(min=16.0)
    series = torch.zeros_like(k)
    for coefficient in STIRLING_SERIES:
        series = series * r * r + coefficient
    return torch.where(k < 16.0, table[k.clamp(max=15.0).to(torch.int64)], series * r)


def split_by_p_or_s(by_p: Tensor, p: Tensor, s: Tensor, k: Tensor, m: Tensor, n: Tensor) -> Split:
    s = torch.where(by_p, k / n - p, s)
    return Split(torch.where(by_p, p, k / n - s), m / n + s, s)


def binomial_tail(
    k: Tensor, m: Tensor, n: Tensor, at: Split, stirling: Tensor, log_level: float
) -> TailPoint:
    """T = P(Bin(n, p) >= k) at ``at``, relative to the level, and derivatives for a Newton step."""
    odds = at.p / at.q
    slope = (n * at.s - at.q) / at.q
    bend = (k - 1.0) + m * odds * odds

    c = 2.0 / 3.0 * odds
    square = slope * c + 0.5 * bend
    half_linear = 0.5 * (_TAIL_EXPONENT * c - slope)
    root = torch.sqrt(half_linear * half_linear + square * _TAIL_EXPONENT)
    length = torch.where(
        half_linear > 0.0, (half_linear + root) / square, _TAIL_EXPONENT / (root - half_linear)
    )
    length = torch.where((square > 0.0) & (length <= 1.0), length, 1.0)

    def integrand(f: Tensor) -> Tensor:
        fall, rise = x_minus_log1p(-f), x_minus_log1p(f * odds[:, None])
        return torch.exp(-(slope[:, None] * f + ((k - 1.0)[:, None] * fall + m[:, None] * rise)))

    unit = integrate_half_line(length, integrand)
    ratio = at.p * n / k
    x = at.s * n / k
    shortfall = torch.where(ratio < 0.5, -torch.log(ratio) - x, x_minus_log1p(-x))
    deviance = k * shortfall + m * x_minus_log1p(at.s * n / m)
    size = unit * torch.sqrt(n * k / (6.283185307179586 * m))
    return TailPoint(
        (torch.log(size) + stirling) - deviance - log_level,
        unit,
        deviance,
        slope * unit,
        bend * unit * unit,
        2.0 * ((k - 1.0) - m * odds * odds * odds) * unit * unit * unit,
    )


# ---------------------------------------------------------------------------- normal_quantile.h

QUANTILE_ERROR = 320.0 * UNIT
_CENTRAL_SERIES = (
    107007.17551484572,
    29606.139419715761,
    8276.6104677178551,
    2343.3847172212110,
    674.15891870555762,
    197.98451474505005,
    59.773440899670547,
    18.764564317793503,
    6.2504716482509161,
    2.3029076935875170,
    1.0471975511965977,
)


def mills_ratio(x: Tensor) -> Tensor:
    length = 2.0 * _TAIL_EXPONENT / (x + torch.sqrt(x * x + 2.0 * _TAIL_EXPONENT))
    return integrate_half_line(length, lambda t: torch.exp(-(x[:, None] + 0.5 * t) * t))


def upper_normal_quantile(q: Tensor) -> Tensor:
    """The x with P(N(0, 1) > x) = q, for q in (0, 0.42]."""
    log_q = torch.log(q)
    t = torch.sqrt(-2.0 * log_q)
    above = ((0.005027694833 * t + 0.3894277263) * t + 3.166991204) * t + 2.800872561
    below = (((0.0006946860788 * t + 0.08609120365) * t + 1.199524483) * t + 2.723798077) * t + 1.0
    x = t - above / below
    mills = mills_ratio(x)
    y = torch.log(mills / _SQRT_2PI) - 0.5 * x * x - log_q
    e = x * mills - 1.0
    return x + mills * y * (1.0 + y * (e / 2.0 + y * (mills * mills + x * mills * e + e * e) / 6.0))


def central_normal_quantile(excess: Tensor) -> Tensor:
    """The x with P(N(0, 1) <= x) = 1/2 + excess, for excess in [0, 0.1]."""
    z = excess * excess
    total = torch.zeros_like(excess)
    for coefficient in _CENTRAL_SERIES:
        total = total * z + coefficient
    return _SQRT_2PI * excess * (1.0 + total * z)
