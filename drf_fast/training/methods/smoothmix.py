"""SmoothMix (Jeong et al. 2021): train on the line from x to a distant adversarial image.

With x_adv from T unbounded steps of size mix_alpha, x1 = x (mix_step 0) or the adversary after one
step, at most mix_radius from x (mix_step 1), u ~ U(0, 1/2), mix = (1 - u) x1 + u x_adv:

(1/(B m)) sum_b sum_i [CE(F(x1 + delta_i), y) + mix_eta 1[correct] KL(target || F(mix + delta_i))],
target = (1 - u) Fbar(x1) + u/K, not detached; correct: Fbar(x1) is largest at y.

With a SoftBall the distance of the ascent is priced: DRF on SmoothMix, which is our own extension.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from drf_fast.adversary import attack
from drf_fast.functional import noisy_repeat
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.tensors import per_image
from drf_fast.training.methods.common import Ball, Batch, MethodOptions, Model, StepLoss


def step(model: Model, batch: Batch, options: MethodOptions, ball: Ball) -> StepLoss:
    """One training step's loss; ``ball`` is None, or a SoftBall for DRF."""
    m = options.num_samples
    start, adversary = _line_ends(model, batch, options, ball)
    noisy = noisy_repeat(start, options.sigma, m, **batch.noise)
    logits = logits_of(model(noisy)).float()
    mean = logits.softmax(1).unflatten(0, (-1, m)).mean(1)

    u = _mixing_weight(batch, m)
    mix = torch.lerp(start, adversary, per_image(u, start))
    target = (1 - u)[:, None] * mean + (u / mean.shape[1])[:, None]
    noisy = noisy_repeat(mix, options.sigma, m, **batch.noise)
    mixed = logits_of(model(noisy)).float().log_softmax(1)
    divergence = F.kl_div(mixed, target.repeat_interleave(m, 0), reduction="none").sum(1)
    correct = (mean.argmax(1) == batch.target).repeat_interleave(m)

    loss = F.cross_entropy(logits, batch.target.repeat_interleave(m))
    loss = loss + options.mix_eta * (correct * divergence).mean()
    return StepLoss(loss, logits.detach(), (adversary - batch.x).flatten(1).norm(dim=1))


def _line_ends(
    model: Model, batch: Batch, options: MethodOptions, ball: Ball
) -> tuple[torch.Tensor, torch.Tensor]:
    """x1 and x_adv, the ends of the line."""

    def ascend(x: torch.Tensor, steps: int) -> torch.Tensor:
        return attack(
            model,
            x,
            batch.target,
            sigma=options.sigma,
            num_samples=options.num_samples,
            steps=steps,
            ball=ball,
            step_size=options.mix_alpha,
            grad_norm=options.grad_norm,
            **batch.noise,
        ).x

    if options.mix_step == 0:
        return batch.x, ascend(batch.x, options.steps)
    first = ascend(batch.x, options.mix_step)
    if ball is None:  # unbounded ascent does not depend on where it started: continue from first
        adversary = ascend(first, options.steps - options.mix_step)
    else:
        adversary = ascend(batch.x, options.steps)
    near = batch.x + (first - batch.x).renorm(2, 0, options.mix_radius)
    return near.clamp(0, 1), adversary


def _mixing_weight(batch: Batch, m: int) -> torch.Tensor:
    """(B,) u ~ U(0, 1/2), a function of step and image: Phi of a normal that no copy uses."""
    zeros = torch.zeros(len(batch.target), 1, device=batch.x.device)
    normal = noisy_repeat(zeros, 1.0, 1, sample_offset=m, **batch.noise)
    return (torch.special.ndtr(normal.flatten()) / 2).to(batch.x.dtype)
