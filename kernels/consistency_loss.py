"""consistency_loss: mean_i CE_i + lam mean_i KL(Fbar || F_i) + eta H(Fbar), Fbar = mean_i F_i.

backends/reference/operations.py has the derivation: with gap_k = log Fbar_k - mean_i log F_i^k the
divergence is sum_k Fbar_k gap_k, and with a_k = lam gap_k - eta log Fbar_k the gradient of row i,
times m, is F_i (a - sum_k F_i^k a_k) - lam (Fbar - F_i) + F_i - 1[k = y].

Logits that do not fit into registers are read three times: for the sums of each row; for the sums
over classes, which need all rows at a class; for the gradient, which needs the latter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drf_fast.kernels.loss_call import run_loss
from drf_fast.kernels.rows import (
    all_valid,
    columns_at,
    exp_,
    finite_or_0,
    images_of_program,
    load_labels,
    load_rows,
    log_label_probability,
    over_classes,
    passing_row_sums,
    quotient,
    row_sums,
    rows_at,
    store_rows,
    sum_classes,
    sum_samples,
)


def consistency_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    lam: torch.Tensor,
    eta: torch.Tensor,
    reduction: str,
    need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    return run_loss(
        consistency_loss_kernel,
        logits,
        target,
        lam,
        eta,
        reduction=reduction,
        need_grad=need_grad,
        values_per_logit=1,
        sums_over_samples=True,
    )


@triton.jit
def consistency_loss_kernel(
    logits,
    target,
    losses,
    grad,
    lam,
    eta,
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
    image, sample, real = images_of_program(batch, samples, IMAGES, SAMPLES)
    columns = columns_at(CHUNKS, LANES)
    classes = classes * ALIGN
    target_label, label = load_labels(target, image, batch)
    rows = rows_at(logits, image, sample, image_stride, sample_stride, ALIGN, CHUNKS)
    if RESIDENT:
        z = load_rows(rows, 0, classes, real, CHUNKS, LANES)
        peak, rest, label_logit = row_sums(z, columns == label)
    else:
        peak, rest, label_logit = passing_row_sums(rows, classes, label, real, CHUNKS, LANES)
    log_p, total = log_label_probability(peak, rest, label_logit)
    valid = all_valid(total, real, target_label, classes)
    per_sample = quotient(1.0, tl.full((), 1.0, total.dtype) * samples)
    cross_entropy = -tl.sum(tl.where(real, log_p, 0.0), axis=1) * per_sample
    base = finite_or_0(peak)
    inverse_total = tl.where(real, quotient(1.0, total), 0.0)
    missing = rest * inverse_total  # 1 - F_i^y, from the other classes
    log_totals = tl.sum(tl.where(real, tl.log(total), 0.0), axis=1)

    # In the dtype of the arithmetic: a float64 scalar would promote the whole tile.
    lam_value = tl.load(lam).to(total.dtype)
    eta_value = tl.load(eta).to(total.dtype)
    if RESIDENT:
        p, mean_p, log_mean, gap, infinite = _columns(
            z, base, inverse_total, log_totals, per_sample, samples
        )
        slope = lam_value * gap - eta_value * log_mean
        mean_slope = sum_classes(p * slope)
        kl = tl.sum(sum_classes(mean_p * gap + infinite), axis=1)
        entropy = -tl.sum(sum_classes(mean_p * log_mean), axis=1)
    else:
        mean_slope = tl.zeros_like(total)
        kl, entropy = tl.zeros_like(cross_entropy), tl.zeros_like(cross_entropy)
        for start in range(0, classes, CHUNKS * LANES):
            z = load_rows(rows, start, classes, real, CHUNKS, LANES)
            p, mean_p, log_mean, gap, infinite = _columns(
                z, base, inverse_total, log_totals, per_sample, samples
            )
            slope = lam_value * gap - eta_value * log_mean
            mean_slope += sum_classes(p * slope)
            kl += tl.sum(sum_classes(mean_p * gap + infinite), axis=1)
            entropy -= tl.sum(sum_classes(mean_p * log_mean), axis=1)
    # lam = 0 is plain cross-entropy, even where the divergence is infinite.
    penalty = tl.where(lam_value > 0, lam_value * kl, 0.0)
    loss = cross_entropy + penalty + eta_value * entropy
    tl.store(losses + image, tl.where(valid, loss, float("nan")), mask=image < batch)

    if NEED_GRAD:
        scale = tl.where(valid, per_sample, float("nan"))
        if MEAN:
            scale = scale / batch
        out = rows_at(grad, image, sample, grad_image_stride, grad_sample_stride, ALIGN, CHUNKS)
        if RESIDENT:
            value = _gradient(
                p, mean_p, slope, mean_slope, columns == label, missing, lam_value, scale
            )
            store_rows(out, 0, classes, real, value, CHUNKS, LANES)
        else:
            for start in range(0, classes, CHUNKS * LANES):
                z = load_rows(rows, start, classes, real, CHUNKS, LANES)
                p, mean_p, log_mean, gap, infinite = _columns(
                    z, base, inverse_total, log_totals, per_sample, samples
                )
                slope = lam_value * gap - eta_value * log_mean
                is_label = start + columns == label
                value = _gradient(p, mean_p, slope, mean_slope, is_label, missing, lam_value, scale)
                store_rows(out, start, classes, real, value, CHUNKS, LANES)


@triton.jit
def _columns(z, base, inverse_total, log_totals, per_sample, samples):
    """Per class: all F_i; Fbar; log Fbar; the gap; what makes the divergence infinite, or 0."""
    x = z - over_classes(base)
    p = exp_(x) * over_classes(inverse_total)
    mean_p = sum_samples(p) * per_sample
    mean_log = (sum_samples(x) - log_totals[None, :, None, None]) * per_sample
    excluding = sum_samples((x == -float("inf")).to(tl.int32))
    # A probability that underflows in every sample adds 0 log 0 = 0.
    tiny = 1.1754943508222875e-38
    log_mean = tl.where(mean_p >= tiny, tl.log(tl.maximum(mean_p, tiny)), 0.0)
    gap = tl.where((mean_p >= tiny) & (excluding == 0), log_mean - mean_log, 0.0)
    # A class of probability 0 in some samples only makes the divergence infinite; its gap is 0.
    infinite = tl.where((excluding > 0) & (excluding < samples), float("inf"), 0.0)
    return p, mean_p, log_mean, gap, infinite


@triton.jit
def _gradient(p, mean_p, slope, mean_slope, is_label, missing, lam, scale):
    value = p * (slope - over_classes(mean_slope)) + lam * (p - mean_p)
    value += tl.where(is_label, -over_classes(missing), p)
    return value * scale[None, :, None, None]
