"""A PGD step outside the network: gradient at the logits, ascent, ball, next noisy batch."""

from __future__ import annotations

import published
import pytest
import torch

import drf_fast

BATCH, M, IMAGE, CLASSES, SIGMA, EPSILON = 64, 4, (1, 28, 28), 10, 0.5, 1.0


@pytest.mark.parametrize("provider", ["eager", "drf_fast hard", "drf_fast soft"])
def test_pgd_step(run, provider):
    x = torch.rand(BATCH, *IMAGE)
    x_adv = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    grad = torch.randn(BATCH * M, *IMAGE)
    logits = torch.randn(BATCH * M, CLASSES, requires_grad=True)
    target = torch.randint(CLASSES, (BATCH,))
    noise = SIGMA * torch.randn(BATCH * M, *IMAGE)
    ids = torch.arange(BATCH)
    hard = provider.endswith("hard")
    ball = drf_fast.HardBall(EPSILON) if hard else drf_fast.SoftBall(EPSILON)

    def ours() -> None:
        loss = drf_fast.smooth_ce(logits, target, M, reduction="sum")
        torch.autograd.grad(loss, logits)
        drf_fast.adversary_step(
            grad, x, x_adv, step_size=0.5, ball=ball, sigma=SIGMA, seed=1, image_ids=ids
        )

    def theirs() -> None:
        published.pgd_step(logits, target, grad, x, x_adv, noise, EPSILON, 0.5)

    floats = 2 * logits.numel() + 2 * grad.numel() + 3 * x.numel()
    group = f"pgd_step {(BATCH, M, *IMAGE, CLASSES)} float32"
    run(group, provider, theirs if provider == "eager" else ours, 4 * floats)
