"""A PGD step outside the network: gradient at the logits, ascent, ball, next noisy batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch

import drf_fast

BATCH, M, IMAGE, CLASSES, SIGMA, EPSILON = 64, 4, (1, 28, 28), 10, 0.5, 1.0
STEP_SIZE = 0.5
PROVIDERS = ("eager", "drf_fast hard", "drf_fast soft")


def pgd_step(provider: str) -> Callable[[], Any]:
    """One step as a function without arguments."""
    x = torch.rand(BATCH, *IMAGE)
    grad = torch.randn(BATCH * M, *IMAGE)
    logits = torch.randn(BATCH * M, CLASSES, requires_grad=True)
    target = torch.randint(CLASSES, (BATCH,))
    if provider == "eager":
        noise = SIGMA * torch.randn(BATCH * M, *IMAGE)
        delta = torch.zeros_like(x, requires_grad=True)
        optimizer = torch.optim.SGD([delta], lr=STEP_SIZE, maximize=True)
        return lambda: published.pgd_step(logits, target, grad, x, delta, optimizer, noise, EPSILON)

    x_adv = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    ball = (drf_fast.HardBall if provider.endswith("hard") else drf_fast.SoftBall)(EPSILON)
    # As in drf_fast.attack, the key and the ids of the noise are made once, before the steps.
    key, ids = torch.tensor(1), torch.arange(BATCH)
    sigma, step_size = torch.tensor(SIGMA).double(), torch.tensor(STEP_SIZE).double()

    def step() -> None:
        loss = drf_fast.smooth_ce(logits, target, M, reduction="sum")
        torch.autograd.grad(loss, logits)
        drf_fast.adversary_step(
            grad, x, x_adv, step_size=step_size, ball=ball, sigma=sigma, seed=key, image_ids=ids
        )

    return step


@pytest.mark.parametrize("provider", PROVIDERS)
def test_pgd_step(run, provider):
    pixels = BATCH * torch.Size(IMAGE).numel()
    floats = 2 * BATCH * M * CLASSES + 2 * M * pixels + 3 * pixels
    group = f"pgd_step {(BATCH, M, *IMAGE, CLASSES)} float32"
    run(group, provider, pgd_step(provider), 4 * floats)
