"""Votes and confidence bounds."""

from __future__ import annotations

import published
import pytest
import scipy.stats
import torch

import drf_fast


@pytest.mark.parametrize("provider", ["eager", "drf_fast"])
def test_vote(run, provider):
    logits = torch.randn(100_000, 10)
    counts = torch.zeros(1, 10, dtype=torch.int64)
    vote = published.vote if provider == "eager" else drf_fast.vote
    run("vote (100000, 10)", provider, lambda: vote(logits, counts), 4 * logits.numel())


@pytest.mark.parametrize("provider", ["scipy", "drf_fast"])
def test_clopper_pearson_lower(run, provider):
    trials, alpha = 100_000, 0.001
    successes = torch.randint(trials // 2, trials, (20_000,))
    k = successes.cpu().numpy()

    def scipy_bound() -> None:
        scipy.stats.beta.ppf(alpha, k, trials - k + 1)

    def our_bound() -> None:
        drf_fast.clopper_pearson_lower(successes, trials, alpha)

    run(
        "clopper_pearson_lower, 20000 counts, n = 100000",
        provider,
        scipy_bound if provider == "scipy" else our_bound,
        16 * len(successes),
    )
