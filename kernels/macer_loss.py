"""macer_loss: -log(Fbar^y + 1e-10) + lam sigma/2 (gamma - xi), mean over the batch.

xi = Phi^-1(p1) - Phi^-1(p2), p1 and p2 the two largest entries of the mean over samples of q_i =
softmax(beta * logits_i). q and all that follows from it is float64: xi is a difference of normal
quantiles far in their tails. backends/reference/operations.py has the derivation.

Logits that do not fit into registers are read three times: for the sums of each row; for the two
largest entries, which need all rows at a class; for the gradient, which needs the latter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drf_fast.kernels.loss_call import run_loss
from drf_fast.kernels.quantile import inverse_density, upper_normal_quantile
from drf_fast.kernels.rows import (
    all_valid,
    columns_at,
    exp_,
    finite_or_0,
    images_of_program,
    load_labels,
    load_rows,
    no_sums,
    over_classes,
    quotient,
    row_sums,
    rows_at,
    store_rows,
    sum_classes,
    sum_samples,
)


def macer_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    sigma: torch.Tensor,
    lam: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    return run_loss(
        macer_loss_kernel,
        logits,
        target,
        sigma,
        lam,
        gamma,
        beta,
        reduction="mean",
        need_grad=need_grad,
        values_per_logit=2,
        sums_over_samples=True,
    )


@triton.jit
def macer_loss_kernel(
    logits,
    target,
    losses,
    grad,
    sigma,
    lam,
    gamma,
    beta,
    batch,
    samples,
    classes,
    image_stride,
    sample_stride,
    grad_image_stride,
    grad_sample_stride,
    ALIGN: tl.constexpr,
    CHUNKS: tl.constexpr,
    IMAGES: tl.constexpr,
    SAMPLES: tl.constexpr,
    LANES: tl.constexpr,
    RESIDENT: tl.constexpr,
    MEAN: tl.constexpr,
    NEED_GRAD: tl.constexpr,
):
    tl.static_assert(CHUNKS == 1)
    image, sample, real = images_of_program(batch, samples, IMAGES, SAMPLES)
    columns = columns_at(CHUNKS, LANES)
    classes = classes * ALIGN
    target_label, label = load_labels(target, image, batch)
    rows = rows_at(logits, image, sample, image_stride, sample_stride, ALIGN, CHUNKS)
    beta_value = tl.load(beta)
    if RESIDENT:
        z = load_rows(rows, 0, classes, real, CHUNKS, LANES)
        peak, rest, label_logit = row_sums(z, columns == label)
        q_total = sum_classes(_scaled_exp(z, finite_or_0(peak), beta_value))
    else:
        peak, rest, label_logit, q_total = _passing_sums(
            rows, classes, label, real, beta_value, LANES
        )
    base = finite_or_0(peak)
    label_exp = exp_(label_logit - base)
    total = rest + label_exp
    valid = all_valid(total, real, target_label, classes)
    inverse_total = tl.where(real, quotient(1.0, total), 0.0)
    p_label = label_exp * inverse_total
    mean_p = tl.sum(p_label, axis=1).to(tl.float64) / samples
    missing_p = tl.sum(rest * inverse_total, axis=1).to(tl.float64) / samples
    # 1 - Fbar^y, summed from the other classes, keeps its digits where Fbar^y is nearly 1.
    mean_p = tl.where(missing_p < 0.5, 1.0 - missing_p, mean_p) + 1e-10

    inverse_q_total = tl.where(real, quotient(1.0, q_total.to(total.dtype)), 0.0).to(tl.float64)
    if RESIDENT:
        q = _scaled_exp(z, base, beta_value) * over_classes(inverse_q_total)
        sum1, first, _at_first, sum2, second, at_second, others = _two_largest(q, LANES)
    else:
        sum1, first, _at_first, sum2, second, at_second, others = _passing_two_largest(
            rows, classes, real, base, inverse_q_total, beta_value, LANES
        )
    # 1 - p1 is summed from the other classes, so that it keeps its digits.
    p1, p2 = sum1 / samples, sum2 / samples
    missing = tl.sum(others, axis=1) / samples
    smaller = tl.minimum(p1, missing)
    quantile1 = upper_normal_quantile(tl.where(smaller > 0.0, smaller, 1.0))
    quantile1 = tl.where(p1 < missing, -quantile1, quantile1)
    quantile2 = -upper_normal_quantile(tl.where(p2 > 0.0, p2, 1.0))
    xi = quantile1 - quantile2
    gamma_value = tl.load(gamma)
    active = (first == target_label) & (smaller > 0.0) & (p2 > 0.0) & (xi <= gamma_value)
    factor = tl.load(lam) * tl.load(sigma) / 2.0
    loss = tl.where(active, factor * (gamma_value - xi), 0.0) - tl.log(mean_p)
    loss = tl.where(valid, loss, float("nan")).to(total.dtype)
    tl.store(losses + image, loss, mask=image < batch)

    if NEED_GRAD:
        scale = tl.where(valid, 1.0, float("nan")).to(tl.float64) / samples
        if MEAN:
            scale = scale / batch
        # d(-xi)/d(mean q), shifted by a constant, which cancels in the gradient of the softmax, so
        # that it is 0 at the first class, where q may be nearly 1.
        weight = tl.where(active, factor * beta_value, 0.0) * scale
        slope1 = weight * tl.where(active, inverse_density(quantile1), 0.0)
        slope2 = weight * tl.where(active, inverse_density(quantile2), 0.0)
        mean_slope = slope1[:, None] * others + slope2[:, None] * at_second
        label_factor = (scale / mean_p).to(total.dtype)[:, None] * p_label * inverse_total
        out = rows_at(grad, image, sample, grad_image_stride, grad_sample_stride, ALIGN, CHUNKS)
        if RESIDENT:
            slope = _slope(LANES, first, second, slope1, slope2)
            value = q * (slope - over_classes(mean_slope))
            value = _add_label(value, z, base, columns == label, rest, label_factor)
            store_rows(out, 0, classes, real, value, CHUNKS, LANES)
        else:
            for start in range(0, classes, LANES):
                z = load_rows(rows, start, classes, real, CHUNKS, LANES)
                q = _scaled_exp(z, base, beta_value) * over_classes(inverse_q_total)
                slope = _slope(LANES, first - start, second - start, slope1, slope2)
                value = q * (slope - over_classes(mean_slope))
                is_label = start + columns == label
                value = _add_label(value, z, base, is_label, rest, label_factor)
                store_rows(out, start, classes, real, value, CHUNKS, LANES)


@triton.jit
def _scaled_exp(z, base, beta):
    """e^(beta (z - base)), float64."""
    return tl.exp(beta * (z.to(tl.float64) - over_classes(base)))


@triton.jit
def _passing_sums(rows, classes, label, real, beta, LANES: tl.constexpr):
    """``row_sums`` and the sum of e^(beta (z - peak)), in a loop over blocks of classes."""
    peak, rest, label_logit = no_sums(rows, real)
    q_total = tl.zeros(real.shape, tl.float64)
    for start in range(0, classes, LANES):
        z = load_rows(rows, start, classes, real, 1, LANES)
        is_label = start + columns_at(1, LANES) == label
        block_peak, block_rest, block_label = row_sums(z, is_label)
        top = tl.maximum(peak, block_peak)
        base, block_base = finite_or_0(top), finite_or_0(block_peak)
        rest = rest * exp_(peak - base) + block_rest * exp_(block_peak - base)
        block_total = sum_classes(_scaled_exp(z, block_base, beta))
        decay = tl.exp(beta * (peak.to(tl.float64) - base))
        q_total = q_total * decay + block_total * tl.exp(beta * (block_peak.to(tl.float64) - base))
        label_logit += block_label
        peak = top
    return peak, rest, label_logit, q_total


@triton.jit
def _two_largest(q, LANES: tl.constexpr):
    """Of each of the two classes with the largest sums over samples: the sum, the class, its q.

    And the sum of q over all classes but the first. Shapes (images,), of q (images, samples). Ties
    go to the lower class.
    """
    sums = sum_samples(q)
    sums = tl.where(sums == sums, sums, 0.0)  # argmax cannot order a NaN
    lane = columns_at(1, LANES)
    sum1 = tl.max(sums, axis=3, keep_dims=True)
    first = tl.argmax(sums, axis=3, keep_dims=True)
    sums = tl.where(lane == first, -1.0, sums)
    sum2 = tl.max(sums, axis=3, keep_dims=True)
    second = tl.argmax(sums, axis=3, keep_dims=True)
    at_first = sum_classes(tl.where(lane == first, q, 0.0))
    at_second = sum_classes(tl.where(lane == second, q, 0.0))
    others = sum_classes(tl.where(lane == first, 0.0, q))
    return (
        _of_image(sum1),
        _of_image(first),
        at_first,
        _of_image(sum2),
        _of_image(second),
        at_second,
        others,
    )


@triton.jit
def _of_image(value):
    """From (1, images, 1, 1) to (images,)."""
    return tl.sum(sum_classes(value), axis=1)


@triton.jit
def _passing_two_largest(rows, classes, real, base, inverse_total, beta, LANES: tl.constexpr):
    """``_two_largest`` in a loop over blocks of classes."""
    others = tl.zeros(real.shape, tl.float64)
    at_first, at_second = others, others
    sum1 = tl.sum(others, axis=1) - 1.0
    sum2 = sum1
    first = sum1.to(tl.int32)
    second = first
    for start in range(0, classes, LANES):
        z = load_rows(rows, start, classes, real, 1, LANES)
        q = _scaled_exp(z, base, beta) * over_classes(inverse_total)
        b_sum1, b_first, b_at_first, b_sum2, b_second, b_at_second, b_others = _two_largest(
            q, LANES
        )
        b_first += start
        b_second += start
        # The second is the lesser of both firsts, or the second of the greater first's block.
        wins = b_sum1 > sum1
        wins_row = wins[:, None]
        others += b_others + tl.where(wins_row, at_first, b_at_first)
        loser_sum = tl.where(wins, sum1, b_sum1)
        loser = tl.where(wins, first, b_first)
        at_loser = tl.where(wins_row, at_first, b_at_first)
        sum2 = tl.where(wins, b_sum2, sum2)
        second = tl.where(wins, b_second, second)
        at_second = tl.where(wins_row, b_at_second, at_second)
        lower = (loser_sum > sum2) | ((loser_sum == sum2) & wins)
        sum2 = tl.where(lower, loser_sum, sum2)
        second = tl.where(lower, loser, second)
        at_second = tl.where(lower[:, None], at_loser, at_second)
        sum1 = tl.where(wins, b_sum1, sum1)
        first = tl.where(wins, b_first, first)
        at_first = tl.where(wins_row, b_at_first, at_first)
    return sum1, first, at_first, sum2, second, at_second, others


@triton.jit
def _slope(LANES: tl.constexpr, first, second, slope1, slope2):
    """(1, images, 1, lanes): 0 at the first class, slope1 elsewhere, slope2 more at the second."""
    lane = columns_at(1, LANES)
    more = tl.where(lane == second[None, :, None, None], slope2[None, :, None, None], 0.0)
    slope = slope1[None, :, None, None] + more
    return tl.where(lane == first[None, :, None, None], 0.0, slope)


@triton.jit
def _add_label(value, z, base, is_label, rest, factor):
    """``value`` plus the gradient of -log(Fbar^y + 1e-10)."""
    e = exp_(z - over_classes(base))
    term = tl.where(is_label, -over_classes(rest), e) * over_classes(factor)
    return term + value.to(term.dtype)
