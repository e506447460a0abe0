"""Rows of logits and their softmax, for the kernels of the three losses.

A program works on a tile (chunks, images, samples, lanes) of classes chunk * lanes + lane, where
the lanes are what one warp loads at once. Triton distributes warps over the inner dimensions first:
with the chunks outermost, and at least as many rows as warps, each row belongs to one warp, and its
reductions need few shuffles. Values per class have the shape (chunks, images, 1, lanes), per row
(images, samples), per image (images,). If the rows of an image fit into registers, the logits are
read once; else a loop over blocks of classes reads them, once for the sums of each row and again
for whatever depends on these ("passing" in names).

Loads and stores use a flat view of the tile, (chunks * images * samples, lanes). Compilers differ
in the dimension over which they distribute warps after the lanes (Triton 3.6: the first, later
ones: the last). A flat view has only one left, over which warps are laid out in order: all rows of
one chunk first, so that a row stays in its warp.

A tile is padded to powers of two. A class beyond the last one is -inf, neutral in every maximum
and, as e^-inf = 0, in every sum; a row that does not exist is all 0, which makes no NaN, and is
masked by ``real``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from drf_fast.kernels.dtypes import narrow, widen


@triton.jit
def exp_(x):
    """e^x for x <= 0, within 1 ulp of a normal number; 0 below -87.7, NaN for NaN.

    Triton's own exp of float32 multiplies by log2(e) first, which costs |x| / 2 ulp.
    """
    dtype: tl.constexpr = x.dtype
    if dtype == tl.float64:
        value = tl.exp(x)
    else:
        # At and below -88.03 the exponent is -127, which makes scale 0.
        x = tl.where(x < -88.03, -88.03, x)
        # Adding 1.5 * 2^23 rounds to an integer; 127 more leave the biased exponent in low bits.
        shifted = tl.fma(x, 1.44269502, 12583039.0)
        exponent = shifted - 12583039.0
        scale = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        # log 2 in two parts; the first has 10 bits, so its product with the exponent is exact.
        r = tl.fma(exponent, -0.693359375, x)
        r = tl.fma(exponent, 2.12194442e-4, r)
        # e^r for |r| <= 0.3472, to 3.1e-9.
        series = tl.fma(r, 0.00138143476414, 0.00836883748981)
        series = tl.fma(r, series, 0.0416683997865)
        series = tl.fma(r, series, 0.166665196363)
        series = tl.fma(r, series, 0.499999933805)
        series = tl.fma(r, series, 1.0)
        value = tl.fma(r, series, 1.0) * scale
    return value


@triton.jit
def quotient(a, b):
    """a / b rounded to nearest: Triton's own / is off by up to 2 units in the last place.

    Used per row, not per class, since it takes some ten instructions more.
    """
    dtype: tl.constexpr = b.dtype
    if dtype == tl.float64:
        value = a / b
    else:
        a = tl.zeros_like(b) + a
        value = tl.div_rn(a, b)
    return value


@triton.jit
def log1p_(x):
    """log(1 + x) for x > -1, keeping the digits of a small x.

    With r = 2^-24 (2^-53 of float64), c = x - (u - 1), which is exact and the rounding of u, and a
    logarithm that is off by a unit in the last place, 2 r |log u| at most: the error is at most
    2 r |log u| + r |c / u| + r |log(1 + x)|, of the logarithm, the quotient and the sum, and
    (c / u)^2 / 2, which the correction leaves out, at most r / 2 of log(1 + x). The correction
    cancels up to half of the logarithm, so the sum of these is at most 6.5 r = 3.9e-7 of
    log(1 + x), and 3.5 r where the two terms agree in sign. Below |x| = r the logarithm is 0 and
    the quotient is the result.
    """
    u = 1.0 + x
    return tl.log(u) + quotient(x - (u - 1.0), u)


@triton.jit
def images_of_program(batch, samples, IMAGES: tl.constexpr, SAMPLES: tl.constexpr):
    """The images and samples of this program, and (images, samples) bool: which rows exist."""
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    sample = tl.arange(0, SAMPLES)
    return image, sample, (image < batch)[:, None] & (sample < samples)[None, :]


@triton.jit
def load_labels(target, image, batch):
    """The labels: (images,) int64, and int32 in a shape that broadcasts with ``columns_at``."""
    label = tl.load(target + image, mask=image < batch, other=0)
    return label, label.to(tl.int32)[None, :, None, None]


@triton.jit
def rows_at(
    pointer, image, sample, image_stride, sample_stride, ALIGN: tl.constexpr, CHUNKS: tl.constexpr
):
    """Pointers to the first class of each row, ``flat``; strides in units of ALIGN."""
    offsets = image.to(tl.int64)[:, None] * image_stride
    offsets += sample.to(tl.int64)[None, :] * sample_stride
    return pointer + flat(offsets, CHUNKS) * ALIGN


@triton.jit
def flat(of_row, CHUNKS: tl.constexpr):
    """Values per row, (images, samples), as (chunks * images * samples, 1)."""
    IMAGES: tl.constexpr = of_row.shape[0]
    SAMPLES: tl.constexpr = of_row.shape[1]
    tile = tl.broadcast_to(of_row[None, :, :], (CHUNKS, IMAGES, SAMPLES))
    return tl.reshape(tile, (CHUNKS * IMAGES * SAMPLES, 1))


@triton.jit
def columns_at(CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """The classes of a tile, (chunks, 1, 1, lanes)."""
    chunk = tl.arange(0, CHUNKS)[:, None, None, None]
    return chunk * LANES + tl.arange(0, LANES)[None, None, None, :]


@triton.jit
def over_classes(of_row):
    """Values per row as (1, images, samples, 1), to broadcast over classes."""
    # In the order that undoes sum_classes: no layout conversion between threads is needed.
    return of_row[:, :, None][None, :, :, :]


@triton.jit
def sum_classes(tile):
    """From (chunks, images, samples, lanes) to (images, samples)."""
    return tl.sum(tl.sum(tile, axis=0), axis=2)


@triton.jit
def sum_samples(tile):
    """From (chunks, images, samples, lanes) to (chunks, images, 1, lanes)."""
    return tl.sum(tile, axis=2, keep_dims=True)


@triton.jit
def load_rows(rows, start, classes, real, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """The logits of the tile, float32 or float64."""
    at, inside = _flat_tile(start, classes, real, CHUNKS, LANES)
    z = widen(tl.load(rows + at, mask=inside, other=0.0))
    z = tl.reshape(z, (CHUNKS, real.shape[0], real.shape[1], LANES))
    beyond = over_classes(real) & (start + columns_at(CHUNKS, LANES) >= classes)
    return tl.where(beyond, -float("inf"), z)


@triton.jit
def store_rows(rows, start, classes, real, value, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    at, inside = _flat_tile(start, classes, real, CHUNKS, LANES)
    value = tl.reshape(narrow(value, rows.dtype.element_ty), at.shape)
    tl.store(rows + at, value, mask=inside)


@triton.jit
def _flat_tile(start, classes, real, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """Classes of the flat tile that begins at class ``start``, and the mask of those that exist."""
    ROWS: tl.constexpr = real.shape[0] * real.shape[1]
    chunk = tl.arange(0, CHUNKS * ROWS) // ROWS
    at = start + (chunk * LANES)[:, None] + tl.arange(0, LANES)[None, :]
    return at, flat(real, CHUNKS) & (at < classes)


@triton.jit
def finite_or_0(peak):
    """What to subtract before an exponential: never -inf, since -inf - -inf is NaN."""
    return tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def row_sums(z, is_label):
    """For each row: its peak; the sum of e^(z - peak) without the label; z at the label.

    The label is kept separate, so that 1 - F^y, summed from the other classes, keeps its digits
    where F^y is nearly 1.
    """
    peak = tl.max(tl.max(z, axis=0), axis=2)
    e = exp_(z - over_classes(finite_or_0(peak)))
    rest = sum_classes(tl.where(is_label, 0.0, e))
    return peak, rest, sum_classes(tl.where(is_label, z, 0.0))


@triton.jit
def no_sums(rows, real):
    """The ``row_sums`` of an empty set of classes: initial values of a loop."""
    zeros = widen(tl.zeros(real.shape, rows.dtype.element_ty))
    return zeros - float("inf"), zeros, zeros


@triton.jit
def passing_row_sums(rows, classes, label, real, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """``row_sums`` in a loop over blocks (online softmax): a higher peak rescales the sums."""
    peak, rest, label_logit = no_sums(rows, real)
    columns = columns_at(CHUNKS, LANES)
    for start in range(0, classes, CHUNKS * LANES):
        z = load_rows(rows, start, classes, real, CHUNKS, LANES)
        block_peak, block_rest, block_label = row_sums(z, start + columns == label)
        top = tl.maximum(peak, block_peak)
        base = finite_or_0(top)
        rest = rest * exp_(peak - base) + block_rest * exp_(block_peak - base)
        label_logit += block_label
        peak = top
    return peak, rest, label_logit


@triton.jit
def log_label_probability(peak, rest, label_logit):
    """Of each row: log F^y, and the sum of e^(z - peak) over all classes.

    The sum is above 0 where the row is a distribution: a NaN, +inf or nothing but -inf make it
    NaN or 0.
    """
    x = label_logit - finite_or_0(peak)
    label_exp = exp_(x)
    # 1 is subtracted from the label's term: rest keeps its digits where the label is the peak.
    return x - log1p_(rest + (label_exp - 1.0)), rest + label_exp


@triton.jit
def all_valid(total, real, label, classes):
    """(images,) bool: every row is a distribution and the label, (images,), one of its classes."""
    bad_rows = tl.sum((real & ~(total > 0.0)).to(tl.int32), axis=1)
    return (bad_rows == 0) & (label >= 0) & (label < classes)


@triton.jit
def reduce_losses(losses, out, batch, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The sum or mean of all losses by one program: in float64, in one fixed order."""
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, batch, BLOCK):
        total += tl.load(losses + start + place, mask=start + place < batch, other=0.0)
    value = tl.sum(total, axis=0)
    if MEAN:
        value = value / batch
    tl.store(out, value.to(out.dtype.element_ty))
