"""SmoothAdv (Salman et al. 2019), and DRF on it: mean CE on noisy copies of adversarial images.

(1/(B m)) sum_b sum_i CE(F(x_adv_b + delta_i), y_b), with x_adv from ``attack`` under the same
delta_i; DRF paper, eq. 10. SmoothAdv has a HardBall, SmoothAdv + DRF a SoftBall.
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
    """One training step's loss."""
    return cross_entropy_step(model, batch, options, ball)
