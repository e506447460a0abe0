"""The m-sample losses, forward and backward to the logits."""

from __future__ import annotations

from collections.abc import Callable

import published
import pytest
import torch

import drf_fast

LAM, ETA = 1.0, 0.5


def fast_consistency(logits, target, m):
    return drf_fast.consistency_loss(logits, target, m, lam=LAM, eta=ETA)


def published_consistency(logits, target, m):
    return published.consistency_loss(logits, target, m, LAM, ETA)


SMOOTH_CE = {
    "eager": published.smooth_ce,
    "compile": torch.compile(published.smooth_ce, dynamic=False),
    "drf_fast": drf_fast.smooth_ce,
}
CONSISTENCY = {
    "eager": published_consistency,
    "compile": torch.compile(published_consistency, dynamic=False),
    "drf_fast": fast_consistency,
}


def measure(run, group: str, provider: str, loss: Callable, shape: tuple[int, ...], dtype) -> None:
    batch, m, classes = shape
    logits = torch.randn(batch * m, classes).to(dtype).requires_grad_()
    target = torch.randint(classes, (batch,))

    def step() -> None:
        torch.autograd.grad(loss(logits, target, m), logits)

    name = f"{group} {shape} {dtype}".replace("torch.", "")
    run(name, provider, step, 2 * logits.numel() * logits.element_size())


@pytest.mark.parametrize("provider", SMOOTH_CE)
@pytest.mark.parametrize(
    "shape",
    [(64, 4, 10), (256, 16, 10), (256, 4, 100), (256, 8, 1000), (4096, 8, 1000)],
    ids=str,
)
def test_smooth_ce(run, provider, shape):
    measure(run, "smooth_ce", provider, SMOOTH_CE[provider], shape, torch.float32)


@pytest.mark.parametrize("provider", SMOOTH_CE)
def test_smooth_ce_bf16(run, provider):
    measure(run, "smooth_ce", provider, SMOOTH_CE[provider], (256, 8, 1000), torch.bfloat16)


@pytest.mark.parametrize("provider", CONSISTENCY)
@pytest.mark.parametrize("shape", [(256, 4, 10), (128, 8, 1000)], ids=str)
def test_consistency_loss(run, provider, shape):
    measure(run, "consistency_loss", provider, CONSISTENCY[provider], shape, torch.float32)
