"""Noisy copies of images: 6 and 4 times the published formulation is the goal."""

from __future__ import annotations

import published
import pytest
import torch

import drf_fast

SIGMA = 0.5
SHAPES = [
    ((256, 4, 1, 28, 28), torch.contiguous_format),
    ((64, 2, 3, 32, 32), torch.channels_last),
    ((16, 2, 3, 224, 224), torch.contiguous_format),
]
PROVIDERS = {
    "eager": published.noisy_repeat,
    "compile": torch.compile(published.noisy_repeat, dynamic=False),
    "drf_fast": drf_fast.noisy_repeat,
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("shape", "layout"), SHAPES, ids=str)
def test_noisy_repeat(run, provider, dtype, shape, layout):
    batch, m, *image = shape
    x = torch.rand(batch, *image).to(dtype).contiguous(memory_format=layout)
    moved = (1 + m) * x.numel() * x.element_size()
    label = "channels_last" if layout is torch.channels_last else "contiguous"
    group = f"noisy_repeat {shape} {label} {dtype}".replace("torch.", "")
    run(group, provider, lambda: PROVIDERS[provider](x, SIGMA, m), moved)
