"""Gaussian noise in whole levels: the table that maps random words to integers.

R is the standard normal times s = 255 sigma, rounded: P(R <= -j) = P(R >= j) = Phi(-(j - 1/2)/s).
It is sampled by looking up one uniform 64-bit word W among the thresholds

    T_j = round(2^64 Phi(-(j - 1/2)/s)),  j = 1 .. N, all those above 0:

    V = W, R = -#{j : T_j > V}  for W < 2^63;    V = 2^64 - 1 - W, R = +#{j : T_j > V}  else.

So the sampled probabilities are multiples of 2^-64 that are known exactly, and so is, up to the
error of Phi, their total variation distance tau from the true ones: a set of images of D pixels has
a probability under the sampled noise that differs from the true one by D tau at most.

Phi is computed in fixed point, 192 bits behind the point, from the series of positive terms

    Phi(-z) = 1/2 - phi(z) (z + z^3/3 + z^5/(3 5) + z^7/(3 5 7) + ...),

phi(z) = exp(-z^2/2)/sqrt(2 pi). For z < 10, which is far beyond the last threshold, the sum stays
below 2^72 and has fewer than 500 terms, and every operation has an error of at most two units of
2^-192; multiplied by the other factors, the error of the result is below 2^-192 2^72 2^10 = 2^-110.
The code relies on 2^-100.

The guide answers "how many T_j > V" with one look-up. The bucket of V is the position of its
leading bit and the ``bits`` bits behind it. There are so many buckets that each holds at most one
threshold value; its row of the guide has that value and the counts for V below it and from it on.

Reference:
    Voracek, Hein 2023, Sound Randomized Smoothing in Floating-Point Arithmetic.
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import torch

# The table grows with sigma; at 16, sixteen times the range of the pixels, it has 37,000 entries.
MOST_SIGMA = 16.0
_OCTAVES = 63  # of V, which is below 2^63
_MOST_BITS = 22  # a look-up takes them from the 23 behind the leading one of a float32

_POINT = 192  # bits behind the point
_ONE = 1 << _POINT
_ERROR = 1 << (_POINT - 100)  # of Phi, in units of 2^-192


class LevelTable(NamedTuple):
    """The table with which ``noisy_levels`` draws noise of one sigma.

    Attributes:
        thresholds: (N,) int64, T_N <= ... <= T_1, all in 1 .. 2^63.
        guide: (63 * 2^bits, 2) int64: the threshold inside a bucket, 0 for none; and
            above + 2^16 below, the counts of thresholds beyond V for V >= it and for V < it.
        distance: tau, an upper bound of the total variation distance of R from its exact law.
    """

    thresholds: torch.Tensor
    guide: torch.Tensor
    distance: float


@functools.cache  # for good: captured CUDA graphs go on reading a table
def level_table(sigma: float, device: torch.device | None = None) -> LevelTable:
    """The table of noise of ``sigma``, in units of 255 levels, made once; 0.2 s at 0.5.

    Raises:
        ValueError: sigma outside (0, 16].
    """
    if not 0.0 < sigma <= MOST_SIGMA:
        raise ValueError(
            f"noise in whole levels needs 0 < sigma <= {MOST_SIGMA:g} in pixel units (1 is the "
            f"range of the pixels), got {sigma:g}; is sigma in levels of 0..255? divide it by 255"
        )
    if device is not None:
        table = level_table(sigma)
        if device.type == "cpu":
            return table
        return table._replace(thresholds=table.thresholds.to(device), guide=table.guide.to(device))
    tails = _tails(Fraction(sigma))
    half_unit = 1 << (_POINT - 65)
    rounded = [(tail + half_unit) >> (_POINT - 64) for tail in tails]
    count = len(rounded) - 1  # the last one is 0
    # The error of each threshold. P(R = 0) is wrong by twice the first, P(R = -j) by the difference
    # of two neighbours, and all beyond the last threshold is missing; P(R = j) as P(R = -j).
    errors = [(t << (_POINT - 64)) - tail for t, tail in zip(rounded, tails, strict=True)]
    total = abs(errors[0]) + tails[-1]
    total += sum(abs(a - b) for a, b in itertools.pairwise(errors))
    total += 2 * (count + 2) * _ERROR
    distance = math.nextafter(float(Fraction(total, _ONE)), math.inf)
    thresholds = torch.tensor(rounded[:count][::-1], dtype=torch.int64, device="cpu")
    return LevelTable(thresholds, _guide(thresholds), distance)


def _tails(sigma: Fraction) -> list[int]:
    """Phi(-(j - 1/2)/s) in units of 2^-192 for j = 1, 2, ... and the first that rounds to 0."""
    scale = 2 * 255 * sigma  # 2 s
    tails: list[int] = []
    least = 1 << (_POINT - 65)
    while not tails or tails[-1] >= least:
        odd = 2 * len(tails) + 1
        if odd > 10 * scale:  # Phi(-10) is below 2^-76, which rounds to a threshold of 0
            tails.append(_ONE >> 76)
        else:
            tails.append(_tail((odd * scale.denominator << _POINT) // scale.numerator))
    return tails


def _tail(z: int) -> int:
    """Phi(-z), argument and result in units of 2^-192, for 0 < z < 10."""
    square = z * z >> _POINT
    term = total = z
    k = 1
    while term:
        k += 2
        term = (term * square >> _POINT) // k
        total += term
    density = _exp_minus(square >> 1) * _inverse_root_of_two_pi() >> _POINT
    return (_ONE >> 1) - (density * total >> _POINT)


def _exp_minus(y: int) -> int:
    """exp(-y) for 0 <= y < 64: its 256th root by Taylor's series, squared 8 times."""
    y >>= 8
    term = total = _ONE
    k = 0
    while term:
        k += 1
        term = (term * y >> _POINT) // k
        total += -term if k % 2 else term
    for _ in range(8):
        total = total * total >> _POINT
    return total


@functools.cache
def _inverse_root_of_two_pi() -> int:
    """1/sqrt(2 pi), with pi = 16 arctan(1/5) - 4 arctan(1/239) (Machin)."""
    guard = 32

    def arctan_of_inverse(x: int) -> int:
        power = total = (_ONE << guard) // x
        k, sign = 1, 1
        while power:
            power //= x * x
            k, sign = k + 2, -sign
            total += sign * (power // k)
        return total

    pi = (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> guard
    return math.isqrt((_ONE**3) // (2 * pi))


def bits_of(guide: torch.Tensor, device: torch.device) -> int:
    """The ``bits`` of a guide, from its size; checked, since look-ups rely on it.

    Raises:
        ValueError: it is no guide of ``level_table``, or not on ``device``.
    """
    bits = (guide.numel() // 2 // _OCTAVES).bit_length() - 1
    expected = (torch.Size((_OCTAVES << max(bits, 0), 2)), torch.int64, device)
    if (guide.shape, guide.dtype, guide.device) != expected or not 1 <= bits <= _MOST_BITS:
        raise ValueError(
            f"noisy_levels: expected an int64 guide of level_table on {device}, got {guide.dtype} "
            f"{tuple(guide.shape)} on {guide.device}"
        )
    return bits


def _guide(thresholds: torch.Tensor) -> torch.Tensor:
    bits = 1
    while _has_shared_bucket(thresholds, bits):
        bits += 1
    bucket = torch.arange(_OCTAVES << bits, device="cpu")
    octave, rest = bucket >> bits, bucket & ((1 << bits) - 1)
    # In two steps, since rest << octave would overflow. Buckets that hold no integer are never
    # looked up.
    low = (1 << octave) + torch.where(
        octave > bits, rest << (octave - bits).clamp(min=0), rest >> (bits - octave).clamp(min=0)
    )
    beyond = torch.tensor([2**63 - 1], device="cpu")
    end = torch.cat([low[1:], beyond])  # the last bucket's last value, or beyond
    low[0], end[0] = 0, 2  # V = 0 has no leading bit and shares the bucket of V = 1
    count = len(thresholds)
    index = torch.searchsorted(thresholds, low, right=True)  # of the first threshold beyond low
    padded = torch.cat([thresholds, beyond])
    inside = padded[index]
    has_one = (index < count) & (inside < end)
    below = count - index
    above = count - torch.searchsorted(thresholds, inside, right=True)
    above = torch.where(has_one, above, below)
    return torch.stack([torch.where(has_one, inside, 0), above + (below << 16)], dim=1)


def _has_shared_bucket(thresholds: torch.Tensor, bits: int) -> bool:
    """Whether two threshold values lie in one bucket, not counting the bucket's first value."""
    buckets = set()
    for t in set(thresholds.tolist()):
        octave = t.bit_length() - 1
        shift = max(octave - bits, 0)
        if t >> shift << shift == t and t > 1:
            continue  # the first value of its bucket
        bucket = (octave, t >> shift)
        if bucket in buckets:
            return True
        buckets.add(bucket)
    return False
