"""CAT-RS (Jeong, Kim, Shin 2023): how many copies of an image are trained on depends on its votes.

With copies i = 1..m of image b, delta_i ~ N(0, sigma^2 I), p_b the share of them that F classifies
right, K_b = max(1, Binomial(m, p_b)), CE_(1) <= CE_(2) <= ... their sorted cross-entropies, and
q_b (K,) the smoothed prediction of a network trained before, the share of votes of each class:

(1/B) sum_b [ (1/m) sum_{i <= K_b} CE_(i)
              + catrs_lam 1[K_b = m] max_i KL(q_b || F(x_b + delta*_i)) ],

the K_b easiest copies of every image and, of images with K_b = m, the worst noise.
delta*_i starts at delta_i and takes T steps of 2 epsilon / T along the normalised gradient of
KL(q_b || F(x_b + .)), each copy separately: projected on the ball of radius epsilon around delta_i,
then shifted and scaled to the mean and mean square over pixels of delta_i, so that it stays noise
of level sigma. x + delta*_i is not clamped. No gradient flows through K_b.

CAT-RS has a HardBall. With a SoftBall the distance of delta*_i from delta_i is priced: DRF on
CAT-RS, which is our own extension; the distance of an image is the mean over its m copies. Without
a ball delta* is delta.

Reference: "Confidence-aware Training of Smoothed Classifiers for Certified Robustness", AAAI 2023,
read as the authors' program smoothing-catrs implements it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from drf_fast.balls import HardBall, SoftBall
from drf_fast.functional import adversary_step, noisy_repeat
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of
from drf_fast.training.methods.common import Ball, Batch, MethodOptions, Model, StepLoss


def step(model: Model, batch: Batch, options: MethodOptions, ball: Ball) -> StepLoss:
    """One training step's loss; ``batch.smoothed`` holds q."""
    if batch.smoothed is None:
        raise ValueError("catrs needs batch.smoothed, the (B, K) smoothed predictions, got None")
    m = options.num_samples
    noisy = noisy_repeat(batch.x, options.sigma, m, **batch.noise)
    logits = logits_of(model(noisy)).float()
    target = batch.target.repeat_interleave(m)
    num_kept = _num_kept(batch, (logits.argmax(1) == target).unflatten(0, (-1, m)))

    entropy = F.cross_entropy(logits, target, reduction="none").unflatten(0, (-1, m))
    easiest = torch.arange(m, device=num_kept.device) < num_kept[:, None]
    low = torch.where(easiest, entropy.sort(1).values, 0).mean(1)

    smoothed = batch.smoothed.repeat_interleave(m, 0)
    worst = noisy if ball is None else _worst_noise(model, batch, noisy, smoothed, options, ball)
    log_q = logits_of(model(worst)).float().log_softmax(1)
    divergence = F.kl_div(log_q, smoothed, reduction="none").sum(1).unflatten(0, (-1, m))
    high = torch.where(num_kept == m, divergence.max(1).values, 0)

    loss = (low + options.catrs_lam * high).mean()
    distance = (worst - noisy).flatten(1).norm(dim=1).unflatten(0, (-1, m)).mean(1)
    return StepLoss(loss, logits.detach(), None if ball is None else distance)


def _num_kept(batch: Batch, right: torch.Tensor) -> torch.Tensor:
    """(B,) int64, max(1, Binomial(m, p)), p the share of ``right`` (B, m).

    The draw is a function of step and image, like the noise: of m normals that no copy uses, those
    below the p-quantile count as successes. That quantile is -inf for p = 0 and inf for p = 1.
    """
    m = right.shape[1]
    zeros = torch.zeros(len(right), 1, device=right.device)
    normal = noisy_repeat(zeros, 1.0, m, sample_offset=m, **batch.noise).view(-1, m)
    quantile = torch.special.ndtri(right.mean(1, keepdim=True, dtype=torch.float32))
    return (normal < quantile).sum(1).clamp(min=1)


def _worst_noise(
    model: Model,
    batch: Batch,
    noisy: torch.Tensor,
    smoothed: torch.Tensor,
    options: MethodOptions,
    ball: HardBall | SoftBall,
) -> torch.Tensor:
    """(B*m, ...) x + delta*, detached; ``noisy`` (B*m, ...) is x + delta."""
    m = options.num_samples
    x = batch.x.repeat_interleave(m, 0)
    ids = batch.image_ids.repeat_interleave(m)
    mean, level = _moments(noisy - x)
    worst = noisy
    with frozen(model):
        for _ in range(options.steps):
            leaf = worst.detach().requires_grad_()
            entropy = F.cross_entropy(logits_of(model(leaf)).float(), smoothed, reduction="sum")
            (gradient,) = torch.autograd.grad(entropy, leaf)
            # Each noisy copy counts as an image here; the noisy images returned are not used.
            stepped, _, _ = adversary_step(
                gradient,
                noisy,
                worst,
                step_size=2 * ball.epsilon / options.steps,
                ball=ball,
                grad_norm=options.grad_norm,
                clamp=None,
                sigma=options.sigma,
                seed=batch.key,
                image_ids=ids,
            )
            noise = stepped - x
            new_mean, new_level = _moments(noise)
            worst = x + mean + (noise - new_mean) * (level / new_level)
    return worst


def _moments(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and root of the mean square over all pixels of each row, (N, 1, ...)."""
    pixels = tuple(range(1, noise.dim()))
    return noise.mean(pixels, keepdim=True), noise.square().mean(pixels, keepdim=True).sqrt()
