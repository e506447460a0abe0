"""Consistency regularisation (Jeong, Shin 2020), with or without an adversary, and DRF on it.

mean CE + lam * mean_i KL(Fbar || F_i) + eta * H(Fbar) on the m noisy copies; DRF paper, eq. 11.
"""

from __future__ import annotations

from drf_fast.functional import consistency_loss
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
    """One training step's loss; ``ball`` None is the Gaussian variant."""
    noisy, distance = noisy_batch(model, batch, options, ball)
    logits = logits_of(model(noisy))
    loss = consistency_loss(
        logits,
        batch.target,
        options.num_samples,
        lam=options.consistency_lam,
        eta=options.consistency_eta,
    )
    return StepLoss(loss, logits.detach(), distance)
