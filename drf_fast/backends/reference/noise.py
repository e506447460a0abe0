"""The noise of drf_fast in plain torch: the definition that all backends follow bit for bit.

One normal is a function of (key, stream, image id, sample index, pixel) and of nothing else, so
batch size, chunking, order, process count and hardware cannot change it.

Counter: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2,
3") with the 64-bit key, low word first, and the counter words

    c0 = group g,  c1 = sample index,  c2 = image id,  c3 = stream.

Normals: the output words w0..w3 give four, by Box and Muller (1958), from the pairs (w0, w1) and
(w2, w3):

    u = float32(w0) * 2^-32 + 2^-33         in (0, 1]
    v = float32(w1 >> 8) * 2^-24            in [0, 1)
    r = sqrt(-2 log u),  z0 = r cos(2 pi v),  z1 = r sin(2 pi v)

Word j of group g belongs to pixel j*G + g of the image flattened in logical NCHW order, where
G = 8 * ceil(D / 32); pixels at or beyond D are dropped. So the four normals of a group go to four
contiguous runs, and any vector width can store them without shuffles.

Exactness: log, cos and sin are the polynomials below, evaluated in float32 with +, -, * and sqrt
only, each rounded to nearest, never contracted into a fused multiply-add. IEEE 754 fixes the result
of each of these operations, hence all backends that follow the same order agree in every bit.

Whole levels (``noisy_levels``) use two blocks for a group, block b with c3 = stream + 4 (1 + b), so
that they share no word with the normals. Their words w0..w7 form four 64-bit words, w_2j being the
high half of number j, which belongs to pixel j*G + g as above; ``levels_of_words`` maps them to
levels by the table of ``runtime/level_table.py``.
"""

from __future__ import annotations

import math

import torch

# log(1 + t) = t - t^2/2 + t^3 P(t) on sqrt(1/2) <= 1 + t < sqrt(2); a weighted minimax fit whose
# error is below 7e-9. ln 2 is split so that e * LN2_HIGH is exact for |e| < 2^10.
LOG_COEFFICIENTS = (
    0.33334165811538696,
    -0.250016987323761,
    0.19954879581928253,
    -0.16564428806304932,
    0.14977958798408508,
    -0.14378973841667175,
    0.08672231435775757,
)
LN2_HIGH = 0.693359375
LN2_LOW = -0.00021219444170128554
SQRT_HALF_BITS = 0x3F3504F3

# cos(2 pi x) = 1 + y C(y) and sin(2 pi x) = x S(y) with y = x^2, on |x| <= 1/8; minimax fits with
# errors below 6e-11 and 2e-9.
COS_COEFFICIENTS = (
    -19.739208221435547,
    64.93934631347656,
    -85.44374084472656,
    59.24596405029297,
)
SIN_COEFFICIENTS = (
    6.283185005187988,
    -41.34162902832031,
    81.58812713623047,
    -75.24006652832031,
)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def groups_per_image(pixels: int) -> int:
    """Number G of counter groups for an image of ``pixels`` values: 8 * ceil(pixels / 32)."""
    return 8 * ((pixels + 31) // 32)


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: torch.Tensor
) -> list[torch.Tensor]:
    """Philox4x32-10 of four broadcastable int64 tensors of 32-bit words and an int64 ``key``.

    Returns the four output words, int64 in [0, 2^32). A product of two 32-bit words may wrap in
    int64, but all its 64 bits are correct: the high word is recovered by a shift and a mask.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) ^ c1 ^ k0) & _MASK
        c2 = ((product0 >> 32) ^ c3 ^ k1) & _MASK
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return [c0, c1, c2, c3]


def _horner(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    result = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        result = result.add_(coefficient).mul_(x)
    return result.add_(coefficients[0])


def normal_radius(word: torch.Tensor) -> torch.Tensor:
    """r = sqrt(-2 log u) in float32 for 32-bit words in int64; u = word * 2^-32 + 2^-33."""
    u = word.to(torch.float32) * 2.0**-32 + 2.0**-33
    # Shift the origin of the exponent to sqrt(1/2), so that 1 + t is in [sqrt(1/2), sqrt(2)).
    shifted = u.view(torch.int32) - SQRT_HALF_BITS
    exponent = (shifted >> 23).to(torch.float32)
    t = ((shifted & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1.0
    square = t * t
    log = (t * square) * _horner(LOG_COEFFICIENTS, t)
    log = log - square * 0.5
    log = log + exponent * LN2_LOW
    log = t + log
    log = log + exponent * LN2_HIGH
    # torch's float32 sqrt may come from a vector library that does not round correctly. In float64
    # and rounded to float32 it does: no root of a float32 lies within 4 float64 ulps of a tie.
    return torch.sqrt((log * -2.0).double()).float()


def cos_sin_turns(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos(2 pi v) and sin(2 pi v) in float32 for 32-bit words in int64; v = (word >> 8) * 2^-24.

    v = quadrant / 4 + x holds exactly with |x| <= 1/8, since v has 24 bits.
    """
    turns = word >> 8
    quadrant = (turns + (1 << 21)) >> 22
    x = (turns - (quadrant << 22)).to(torch.float32) * 2.0**-24
    y = x * x
    cosine = y * _horner(COS_COEFFICIENTS, y) + 1.0
    sine = x * _horner(SIN_COEFFICIENTS, y)
    odd = (quadrant & 1).bool()
    real, imaginary = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    # Quadrants 1, 2 have a negative cosine, 2, 3 a negative sine.
    real = torch.where(((quadrant + 1) & 2).bool(), -real, real)
    imaginary = torch.where((quadrant & 2).bool(), -imaginary, imaginary)
    return real, imaginary


def normals(
    key: torch.Tensor,
    image_ids: torch.Tensor,
    sample_ids: torch.Tensor,
    stream: int,
    pixels: int,
) -> torch.Tensor:
    """Standard normals of R rows: float32 (R, pixels).

    Args:
        key: int64 0-dim, the bits of the 64-bit seed.
        image_ids: int64 (R,), in [0, 2^32).
        sample_ids: int64 (R,), in [0, 2^32).
        stream: 0 training, 1 selection, 2 estimation, 3 prediction.
        pixels: D, values of one image.
    """
    device = image_ids.device
    groups = torch.arange(groups_per_image(pixels), device=device).unsqueeze(0)
    words = philox(
        (
            groups,
            sample_ids.unsqueeze(1),
            image_ids.unsqueeze(1),
            torch.full((1, 1), stream, dtype=torch.int64, device=device),
        ),
        key.to(device),
    )
    parts = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = normal_radius(radius_word)
        cosine, sine = cos_sin_turns(angle_word)
        parts += [radius * cosine, radius * sine]
    return torch.cat(parts, dim=1)[:, :pixels]


def level_words(
    key: torch.Tensor,
    image_ids: torch.Tensor,
    sample_ids: torch.Tensor,
    stream: int,
    pixels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 64-bit words of R rows: their high and low halves, int64 (R, pixels) each.

    Arguments as in ``normals``.
    """
    device = image_ids.device
    groups = torch.arange(groups_per_image(pixels), device=device).unsqueeze(0)
    words = []
    for block in range(2):
        last = torch.full((1, 1), stream + 4 * (1 + block), dtype=torch.int64, device=device)
        counter = (groups, sample_ids.unsqueeze(1), image_ids.unsqueeze(1), last)
        words += philox(counter, key.to(device))
    high, low = torch.cat(words[0::2], dim=1), torch.cat(words[1::2], dim=1)
    return high[:, :pixels], low[:, :pixels]


def levels_of_words(
    high: torch.Tensor, low: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """R of the words W = 2^32 high + low, by binary search; int64 of their shape.

    Args:
        high, low: int64 in [0, 2^32).
        thresholds: (N,) int64, ascending.
    """
    upper = high >= 2**31
    value = torch.where(upper, (high ^ 0xFFFFFFFF) << 32 | (low ^ 0xFFFFFFFF), high << 32 | low)
    beyond = thresholds.numel() - torch.searchsorted(thresholds, value, right=True)
    return torch.where(upper, beyond, -beyond)


def rows_per_chunk(pixels: int) -> int:
    """Rows whose temporaries, 8 bytes per group, are about 1 MiB each and stay near the cache."""
    return max(1, math.floor(2**17 / groups_per_image(pixels)))
