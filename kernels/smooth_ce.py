"""smooth_ce: -log((1/m) sum_i F_i^y) and its gradient from one read of the logits.

Logits of an image that do not fit registers (``loss_call`` has the sizes) are read twice.
With e_i = exp(z_i - peak_i), s_i its sum and w = softmax_i(log F_i^y), the gradient of row i is
w_i / s_i times e_i, and at the label minus the sum of the other e_i: one factor for each row.
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
    log1p_,
    over_classes,
    passing_row_sums,
    quotient,
    row_sums,
    rows_at,
    store_rows,
)


def smooth_ce(
    logits: torch.Tensor, target: torch.Tensor, reduction: str, need_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    return run_loss(
        smooth_ce_kernel,
        logits,
        target,
        reduction=reduction,
        need_grad=need_grad,
        values_per_logit=1,
        sums_over_samples=False,
    )


@triton.jit
def smooth_ce_kernel(
    logits,
    target,
    losses,
    grad,
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
    x = label_logit - finite_or_0(peak)
    total = rest + exp_(x)
    log_p = x - tl.log(total)
    valid = all_valid(total, real, target_label, classes)

    log_p = tl.where(real, log_p, -float("inf"))
    top = tl.max(log_p, axis=1)
    # Where every F_i^y is exactly 0 their softmax is 0 / 0: all samples weigh the same.
    all_zero = (top == -float("inf"))[:, None] & real
    weight = exp_(tl.where(all_zero, 0.0, log_p - finite_or_0(top)[:, None]))
    weights = tl.sum(weight, axis=1)
    # A small loss keeps its digits in the mean of 1 - F_i^y, a large one in log space.
    missing = tl.sum(tl.where(real, quotient(rest, total), 0.0), axis=1) / samples
    near = -log1p_(-tl.minimum(missing, 0.5))
    loss = tl.where(missing < 0.5, near, -top - tl.log(weights / samples))
    tl.store(losses + image, tl.where(valid, loss, float("nan")), mask=image < batch)

    if NEED_GRAD:
        if MEAN:
            weights = weights * batch
        factor = quotient(weight, weights[:, None] * total)
        factor = tl.where(valid[:, None], factor, float("nan"))
        out = rows_at(grad, image, sample, grad_image_stride, grad_sample_stride, ALIGN, CHUNKS)
        if RESIDENT:
            slope = _slope(z, columns == label, peak, rest, factor)
            store_rows(out, 0, classes, real, slope, CHUNKS, LANES)
        else:
            for start in range(0, classes, CHUNKS * LANES):
                z = load_rows(rows, start, classes, real, CHUNKS, LANES)
                slope = _slope(z, start + columns == label, peak, rest, factor)
                store_rows(out, start, classes, real, slope, CHUNKS, LANES)


@triton.jit
def _slope(z, is_label, peak, rest, factor):
    e = exp_(z - over_classes(finite_or_0(peak)))
    return tl.where(is_label, -over_classes(rest), e) * over_classes(factor)
