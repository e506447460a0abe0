"""Noisy copies of 8-bit images in whole levels: at most 2.5 times noisy_repeat is the goal."""

from __future__ import annotations

import pytest
import torch

import drf_fast

SIGMA = 0.5
PROVIDERS = {
    "noisy_repeat": lambda u, x, m: drf_fast.noisy_repeat(x, SIGMA, m),
    "noisy_levels": lambda u, x, m: drf_fast.noisy_levels(u, SIGMA, m),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", [(256, 4, 1, 28, 28), (16, 2, 3, 224, 224)], ids=str)
def test_noisy_levels(run, provider, shape):
    batch, m, *image = shape
    u = torch.randint(0, 256, (batch, *image), dtype=torch.uint8)
    x = u.float() / 255
    read = u if provider == "noisy_levels" else x
    moved = read.numel() * read.element_size() + m * x.numel() * x.element_size()
    run(f"noisy_levels {shape}", provider, lambda: PROVIDERS[provider](u, x, m), moved)
