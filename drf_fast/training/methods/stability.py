"""Stability training (Li, Chen, Wang, Carin 2019): noisy outputs are drawn to the clean one.

(1/B) sum_b [CE(F(x_b), y_b) + (stability_lam / m) sum_i CE(F(x_b), F(x_b + delta_i))], where the
second cross-entropy has the clean probabilities as its target, through which gradients flow too.
"""

from __future__ import annotations

from torch.nn import functional as F

from drf_fast.runtime.logits import logits_of
from drf_fast.training.methods.common import (
    Ball,
    Batch,
    MethodOptions,
    Model,
    StepLoss,
    noisy_batch,
)


def step(model: Model, batch: Batch, options: MethodOptions, ball: Ball) -> StepLoss:
    """One training step's loss; ``ball`` must be None."""
    noisy, _ = noisy_batch(model, batch, options, None)
    clean = logits_of(model(batch.x)).float()
    logits = logits_of(model(noisy)).float()
    target = clean.softmax(1).repeat_interleave(options.num_samples, 0)
    stability = F.cross_entropy(logits, target)
    loss = F.cross_entropy(clean, batch.target) + options.stability_lam * stability
    return StepLoss(loss, logits.detach())
