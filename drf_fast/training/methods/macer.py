"""MACER (Zhai et al. 2020): maximise the radius of images classified right, without an adversary.

(1/B) sum_b [-log(Fbar^y + 1e-10) + macer_lam (sigma/2) (macer_gamma - xi) 1[correct, xi <= gamma]]
with xi = Phi^-1(p1) - Phi^-1(p2) of the means p of softmax(macer_beta F); see ``macer_loss``.
"""

from __future__ import annotations

from drf_fast.functional import macer_loss
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
    logits = logits_of(model(noisy))
    loss = macer_loss(
        logits,
        batch.target,
        options.num_samples,
        sigma=options.sigma,
        lam=options.macer_lam,
        gamma=options.macer_gamma,
        beta=options.macer_beta,
    )
    return StepLoss(loss, logits.detach())
