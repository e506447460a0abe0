"""A classifier of three classes by differences of pixels, and images of every kind for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import drf_fast

SIGMA, SEED, K = 0.5, 17, 3


def differences(rows: torch.Tensor) -> torch.Tensor:
    """Logits by subtraction alone: each row's are the same bits in any batch."""
    pixels = rows.flatten(1)
    return torch.stack(
        [pixels[:, 0] - pixels[:, 1], pixels[:, 2] - pixels[:, 3], pixels[:, 4] * 0 - 1.5], dim=1
    )


def as_module(call: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A network with this forward: that its votes are independent is tested once."""
    module = nn.Module()
    module.forward = call
    return module


def classifier(base: Any = differences, **options: Any) -> drf_fast.SmoothedClassifier:
    return drf_fast.SmoothedClassifier(base, K, SIGMA, **{"seed": SEED, **options})


def images() -> torch.Tensor:
    """Clear to either class, clear to both, near the border, and far from everything."""
    x = torch.full((6, 1, 2, 4), 0.5)
    x[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    x[1, 0, 0, 2:] = torch.tensor([1.0, 0.0])
    x[2, 0, 0] = torch.tensor([0.9, 0.1, 0.8, 0.2])
    x[4, 0, 0] = torch.tensor([0.0, 1.0, 0.2, 0.8])
    x[5, 0, 0] = torch.tensor([1.5, 0.0, 0.0, 1.5])
    return x
