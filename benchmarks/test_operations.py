"""Each operation beside the way published code writes it: ``pytest benchmarks/ --benchmark-only``.

Compare rows of one group within one run, on an otherwise idle machine; absolute times drift.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

import drf_fast

SIGMA = 0.5


def eager_noisy_repeat(x: torch.Tensor, m: int) -> torch.Tensor:
    repeated = x.repeat_interleave(m, dim=0)
    return repeated + torch.randn_like(repeated) * SIGMA


def fast_noisy_repeat(x: torch.Tensor, m: int) -> torch.Tensor:
    return drf_fast.noisy_repeat(x, SIGMA, m)


@pytest.mark.parametrize("provider", [eager_noisy_repeat, fast_noisy_repeat])
@pytest.mark.parametrize("shape", [(256, 4, 1, 28, 28), (64, 2, 3, 32, 32)], ids=str)
def test_noisy_repeat(benchmark, provider: Callable, shape: tuple[int, ...]):
    batch, m, *image = shape
    x = torch.rand(batch, *image)
    benchmark.group = f"noisy_repeat {shape}"
    benchmark.extra_info["normals"] = batch * m * image[0] * image[1] * image[2]
    benchmark(provider, x, m)


def eager_smooth_ce(logits: torch.Tensor, target: torch.Tensor, m: int) -> torch.Tensor:
    p = F.softmax(logits, dim=1).reshape(-1, m, logits.shape[1]).mean(1)
    return F.nll_loss(torch.log(p.clamp(min=1e-20)), target)


def fast_smooth_ce(logits: torch.Tensor, target: torch.Tensor, m: int) -> torch.Tensor:
    return drf_fast.smooth_ce(logits, target, m)


@pytest.mark.parametrize("provider", [eager_smooth_ce, fast_smooth_ce])
@pytest.mark.parametrize("shape", [(64, 4, 10), (256, 16, 10), (256, 8, 1000)], ids=str)
def test_smooth_ce_forward_and_backward(benchmark, provider: Callable, shape: tuple[int, ...]):
    batch, m, classes = shape
    logits = torch.randn(batch * m, classes, requires_grad=True)
    target = torch.randint(classes, (batch,))
    benchmark.group = f"smooth_ce {shape}"
    benchmark(lambda: torch.autograd.grad(provider(logits, target, m), logits))


def eager_vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    counts[0] += torch.bincount(logits.argmax(1), minlength=counts.shape[1])


@pytest.mark.parametrize("provider", [eager_vote, drf_fast.vote])
def test_vote(benchmark, provider: Callable):
    logits = torch.randn(100_000, 10)
    counts = torch.zeros(1, 10, dtype=torch.int64)
    benchmark.group = "vote (100000, 10)"
    benchmark(provider, logits, counts)


def scipy_lower_bound(successes: torch.Tensor, trials: int, alpha: float) -> torch.Tensor:
    k = successes.numpy()
    return torch.from_numpy(scipy.stats.beta.ppf(alpha, k, trials - k + 1))


@pytest.mark.parametrize("provider", [scipy_lower_bound, drf_fast.clopper_pearson_lower])
def test_clopper_pearson_lower(benchmark, provider: Callable):
    trials = 100_000
    successes = torch.randint(trials // 2, trials, (20_000,))
    benchmark.group = "clopper_pearson_lower 20000 counts, n = 100000"
    benchmark(provider, successes, trials, 0.001)
