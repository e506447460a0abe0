"""Gaussian augmentation (Cohen, Rosenfeld, Kolter 2019): mean CE on noisy copies of x.

(1/(B m)) sum_b sum_i CE(F(x_b + delta_i), y_b), delta ~ N(0, sigma^2 I); DRF paper, eq. 9.
"""

from __future__ import annotations

from drf_fast.training.methods.common import (
    Ball,
    Batch,
    MethodOptions,
    Model,
    StepLoss,
    cross_entropy_step,
)


def step(model: Model, batch: Batch, options: MethodOptions, ball: Ball) -> StepLoss:
    """One training step's loss; ``ball`` must be None."""
    return cross_entropy_step(model, batch, options, None)
