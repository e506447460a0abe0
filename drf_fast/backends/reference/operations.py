"""Every operation in plain torch: the reference that the compiled backends are tested against.

Written for clarity. Losses are computed in the arithmetic dtype (float32, or float64 for float64
input), norms and MACER's quantiles in float64. The signatures are those of ``ops/schemas.py``.
"""

from __future__ import annotations

import math

import torch

from drf_fast.backends.reference.bounds import certified_radius, clopper_pearson_lower
from drf_fast.backends.reference.noise import (
    level_words,
    levels_of_words,
    normals,
    rows_per_chunk,
)
from drf_fast.backends.reference.pooling import (
    max_pool_relu,
    max_pool_relu_backward,
    pooled_image_gradient,
)
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.raw_arguments import refuse_bad_images
from drf_fast.runtime.tensors import arithmetic_dtype, memory_format_of, per_image
from drf_fast.runtime.values import may_read

__all__ = [
    "adversary_step",
    "certified_radius",
    "clopper_pearson_lower",
    "consistency_loss",
    "macer_loss",
    "max_pool_relu",
    "max_pool_relu_backward",
    "noisy_levels",
    "noisy_repeat",
    "noisy_repeat_backward",
    "pooled_image_gradient",
    "smooth_ce",
    "vote",
]


def _arithmetic(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(arithmetic_dtype(tensor.dtype))


# ------------------------------------------------------------------------------------------ noise


def noisy_repeat(x, sigma, key, image_ids, sample_offset, num_samples, stream):
    """x + sigma * normal, product and sum each rounded; (B, ...) -> (B*m, ...), image-major."""
    batch, pixels = x.shape[0], math.prod(x.shape[1:])
    source = _arithmetic(x.reshape(batch, pixels))
    scale = sigma.to(device=x.device, dtype=source.dtype)
    offset = sample_offset.to(x.device)
    rows = torch.arange(batch * num_samples, device=x.device)
    out = x.new_empty((batch * num_samples, pixels))
    step = rows_per_chunk(pixels)
    for start in range(0, batch * num_samples, step):
        chunk = rows[start : start + step]
        image, sample = chunk // num_samples, chunk % num_samples + offset
        noise = normals(key, image_ids[image], sample, STREAM_WORDS[stream], pixels)
        # .to: a 0-dim float64 scale does not promote float32 noise to float64.
        out[start : start + step] = source[image] + scale * noise.to(source.dtype)
    out = out.reshape(batch * num_samples, *x.shape[1:])
    return out.contiguous(memory_format=memory_format_of(x))


def noisy_repeat_backward(grad, num_samples):
    """Sum over the m noisy copies of an image: (B*m, ...) -> (B, ...)."""
    rows = grad.shape[0] // num_samples
    total = _arithmetic(grad.reshape(rows, num_samples, *grad.shape[1:])).sum(1).to(grad.dtype)
    return total.contiguous(memory_format=memory_format_of(grad))


def noisy_levels(u, thresholds, guide, key, image_ids, sample_offset, num_samples, stream, dtype):
    """float32(u + R)/255, then ``dtype``; the guide, for faster search, is unused here."""
    batch, pixels = u.shape[0], math.prod(u.shape[1:])
    source, offset = u.reshape(batch, pixels).to(torch.int64), sample_offset.to(u.device)
    rows = torch.arange(batch * num_samples, device=u.device)
    out = torch.empty((batch * num_samples, pixels), dtype=dtype, device=u.device)
    step = rows_per_chunk(pixels)
    for start in range(0, batch * num_samples, step):
        chunk = rows[start : start + step]
        image, sample = chunk // num_samples, chunk % num_samples + offset
        words = level_words(key, image_ids[image], sample, STREAM_WORDS[stream], pixels)
        levels = source[image] + levels_of_words(*words, thresholds)
        out[start : start + step] = (levels.to(torch.float32) / 255).to(dtype)
    out = out.reshape(batch * num_samples, *u.shape[1:])
    return out.contiguous(memory_format=memory_format_of(u))


# ----------------------------------------------------------------------------------------- losses


def _invalid_images(log_probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """(B,) bool: label out of range, or logits that give no valid distribution.

    None, or an error, where values may be read.
    """
    classes = log_probabilities.shape[2]
    bad_label = (target < 0) | (target >= classes)
    bad_logits = log_probabilities.isnan().flatten(1).any(1)
    if not may_read(target.device):
        return bad_label | bad_logits
    refuse_bad_images(bad_label, bad_logits, target, classes)
    return None


def _finish(loss, grad, invalid, logits, reduction, need_grad):
    """Reduce (B,) losses and scale the gradient of their sum accordingly."""
    if invalid is not None:
        loss = loss.masked_fill(invalid, math.nan)
        grad = grad.masked_fill(per_image(invalid, grad), math.nan)
    if reduction == "mean":
        grad = grad / loss.shape[0]
        value = loss.mean()
    else:
        value = loss.sum() if reduction == "sum" else loss
    if not need_grad:
        return value, logits.new_empty((0,))
    out = torch.empty_like(logits)
    out.copy_(grad)
    return value, out


def _log_softmax_and_target(logits, target):
    log_p = torch.log_softmax(_arithmetic(logits), dim=2)
    invalid = _invalid_images(log_p, target)
    safe = target.clamp(0, logits.shape[2] - 1)
    index = safe.reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)
    one_hot = torch.zeros_like(log_p).scatter_(2, index, 1.0)
    return log_p, log_p.gather(2, index).squeeze(2), one_hot, invalid


def smooth_ce(logits, target, reduction, need_grad):
    """-log((1/m) sum_i F_i^y) = log m - logsumexp_i log F_i^y, never leaving log space."""
    log_p, log_p_target, one_hot, invalid = _log_softmax_and_target(logits, target)
    samples = logits.shape[1]
    loss = math.log(samples) - torch.logsumexp(log_p_target, dim=1)
    # Where every F_i^y is exactly 0 the softmax over i is 0/0: all samples weigh the same.
    weight = torch.softmax(log_p_target, dim=1).nan_to_num(nan=1.0 / samples)
    grad = weight.unsqueeze(2) * (log_p.exp() - one_hot)
    return _finish(loss, grad, invalid, logits, reduction, need_grad)


def consistency_loss(logits, target, lam, eta, reduction, need_grad):
    """mean_i CE_i + lam * mean_i KL(Fbar || F_i) + eta * H(Fbar), Fbar = mean_i F_i not detached.

    With M = mean_i log F_i the divergence is sum_k Fbar_k (log Fbar_k - M_k). The derivative of the
    loss is a_k = lam (log Fbar_k - M_k) - eta log Fbar_k with respect to Fbar_k, up to a constant
    that cancels in the softmax's backward, and -lam Fbar_k / m with respect to log F_i^k.
    Differences are taken before lam multiplies them: they are small where the samples agree.
    """
    log_p, log_p_target, one_hot, invalid = _log_softmax_and_target(logits, target)
    samples = logits.shape[1]
    lam = lam.to(device=log_p.device, dtype=log_p.dtype)
    eta = eta.to(device=log_p.device, dtype=log_p.dtype)
    p = log_p.exp()
    mean_p = p.mean(1)
    log_mean = torch.logsumexp(log_p, dim=1) - math.log(samples)
    mean_log = log_p.mean(1)
    # A class with probability 0 in all samples (-inf) contributes 0 log 0 = 0 to both sums.
    possible = log_mean > -math.inf
    log_mean = torch.where(possible, log_mean, 0.0)
    # One with probability 0 in some makes the KL and so the loss +inf; it adds no gradient.
    excluded = possible & (mean_log == -math.inf)
    gap = torch.where(possible & ~excluded, log_mean - mean_log, 0.0)
    kl = (mean_p * gap).sum(1).masked_fill(excluded.any(1), math.inf)
    entropy = -(mean_p * log_mean).sum(1)
    # lam = 0 must be cross-entropy even where the divergence is infinite.
    loss = -log_p_target.mean(1) + torch.where(lam > 0, lam * kl, 0.0) + eta * entropy
    a = (lam * gap - eta * log_mean).unsqueeze(1)
    grad = p * (a - (p * a).sum(2, keepdim=True)) - lam * (mean_p.unsqueeze(1) - p) + p - one_hot
    return _finish(loss, grad / samples, invalid, logits, reduction, need_grad)


def macer_loss(logits, target, sigma, lam, gamma, beta, need_grad):
    """-log(mean_i F_i^y + 1e-10) + lam sigma/2 (gamma - xi), mean over the batch.

    xi = Phi^-1(p1) - Phi^-1(p2), p1 and p2 the two largest entries of the mean over samples of
    softmax(beta * logits); the second term counts only where p1 is the label's and xi <= gamma.
    """
    log_p, _, one_hot, invalid = _log_softmax_and_target(logits, target)
    samples, classes = logits.shape[1], logits.shape[2]
    sigma, lam, gamma, beta = (
        value.to(device=logits.device, dtype=torch.float64) for value in (sigma, lam, gamma, beta)
    )
    p = log_p.double().exp()
    one_hot = one_hot.double()
    target_mean = (p * one_hot).sum(2).mean(1)
    loss = -torch.log(target_mean + 1e-10)
    slope = -1.0 / (target_mean + 1e-10)
    p_target = (p * one_hot).sum(2, keepdim=True)
    grad = per_image(slope, p) * p_target * (one_hot - p) / samples

    q = torch.softmax(beta * logits.double(), dim=2)
    mean_q = q.mean(1)
    first = mean_q.argmax(1)
    is_first = torch.nn.functional.one_hot(first, classes).bool()
    p2, second = mean_q.masked_fill(is_first, -1.0).max(1)
    is_second = torch.nn.functional.one_hot(second, classes).bool()
    # Phi^-1(p1) = -Phi^-1(1 - p1), with 1 - p1 summed from the other classes to keep its digits.
    rest = mean_q.masked_fill(is_first, 0.0).sum(1)
    quantile1, quantile2 = -torch.special.ndtri(rest), torch.special.ndtri(p2)
    xi = quantile1 - quantile2
    active = (first == target) & xi.isfinite() & (xi <= gamma)
    factor = lam * sigma / 2
    loss = loss + torch.where(active, factor * (gamma - xi), 0.0)

    def inverse_density(quantile: torch.Tensor) -> torch.Tensor:
        return math.sqrt(2 * math.pi) * torch.exp(quantile * quantile / 2)

    # d(-xi)/d(mean_q), plus a constant that cancels in the softmax's backward and makes the entry
    # of the first class 0: otherwise digits would cancel in the sum below where q is nearly 1.
    slope_q = is_second * inverse_density(quantile2).unsqueeze(1)
    slope_q = slope_q + ~is_first * inverse_density(quantile1).unsqueeze(1)
    slope_q = torch.where(active.unsqueeze(1), factor * slope_q, 0.0).unsqueeze(1)
    grad = grad + beta / samples * q * (slope_q - (q * slope_q).sum(2, keepdim=True))
    value, grad = _finish(loss, grad, invalid, logits, "mean", need_grad)
    return value.to(log_p.dtype), grad


# -------------------------------------------------------------------------------------- adversary


def _norms(values: torch.Tensor) -> torch.Tensor:
    """Per-image L2 norms, float64 (B,)."""
    return values.double().flatten(1).square().sum(1).sqrt()


def _shrinkage(distance, step_size, epsilon, lam, ball):
    """The factor, float64 (B,), at most 1, by which the ball scales the displacement from x."""
    ones = torch.ones_like(distance)
    if ball == "none":
        return ones
    if ball == "shrink":
        return ones - lam.clamp(max=1.0)
    positive = distance.clamp(min=torch.finfo(torch.float64).tiny)
    if ball == "prox":
        return torch.where(distance > 0, (1.0 - step_size * lam / positive).clamp(min=0.0), 1.0)
    over = (1.0 - epsilon / positive).clamp(min=0.0)
    if ball == "udr":  # negative where lambda is large: beyond x, on its other side
        return 1.0 - lam * over
    # The hard ball is the excess form at lambda = 1, bit for bit.
    weight = torch.ones_like(lam) if ball == "hard" else lam.clamp(max=1.0)
    return 1.0 - weight * over


def adversary_step(
    grad, x, x_adv, step_size, epsilon, lam, sigma, key, image_ids, ball, grad_norm, clamp
):
    """Ascent along the gradient summed over the m copies, ball, clamp, distance, next noise."""
    batch, num_samples = x.shape[0], grad.shape[0] // x.shape[0]
    origin = _arithmetic(x)
    step_size, epsilon, lam = (
        value.to(device=x.device, dtype=torch.float64) for value in (step_size, epsilon, lam)
    )
    total = _arithmetic(grad.reshape(batch, num_samples, *grad.shape[1:])).sum(1)
    if grad_norm == "none":
        scale = step_size.expand(batch)
    else:
        norms = _norms(total)
        divisor = norms if grad_norm == "image" else norms.mean().expand(batch)
        scale = torch.where(divisor > 0, step_size / divisor, 0.0)
    # In float64: where the network is confident, norms are so small that 1/norm overflows float32.
    ascent = (total.double() * per_image(scale, total)).to(total.dtype)
    moved = _arithmetic(x_adv) + ascent
    if clamp is not None and ball in ("none", "hard", "excess"):
        moved = moved.clamp(*clamp)
    offset = moved - origin
    factor = _shrinkage(_norms(offset), step_size, epsilon, lam, ball)
    factor = per_image(factor, offset).to(offset.dtype)
    moved = torch.where(factor < 1.0, origin + offset * factor, moved)
    if clamp is not None:
        moved = moved.clamp(*clamp)
    result = torch.empty_like(x)
    result.copy_(moved)
    distance = _norms(_arithmetic(result) - origin).to(origin.dtype)
    no_offset = torch.zeros((), dtype=torch.int64, device=x.device)
    noisy = noisy_repeat(result, sigma, key, image_ids, no_offset, num_samples, "train")
    return result, noisy, distance


# ------------------------------------------------------------------------------------------ votes


def vote(logits, counts):
    """counts[image, argmax of row] += 1; ties to the lowest class, rows with a NaN left out."""
    images, classes = counts.shape
    valid = ~logits.isnan().any(1)
    image = torch.arange(logits.shape[0], device=logits.device) // (logits.shape[0] // images)
    index = image * classes + logits.argmax(1)
    counts.view(-1).scatter_add_(0, index, valid.to(torch.int64))
