"""Networks that are trained by ``--arch trained:NAME``, the same weights at each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def smooth(num_classes: int) -> nn.Sequential:
    """No kinks, so that rounding stays rounding, and steep enough for a few steps to matter."""
    layers: tuple[Any, ...] = (nn.Linear(49, 8), nn.Linear(8, num_classes))
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        for values in (layer.weight, layer.bias):
            values.data = 0.5 * torch.randn(values.shape, generator=generator)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), layers[0], nn.Tanh(), layers[1])


def restless(num_classes: int) -> nn.Sequential:
    """With statistics of the images, and with units that drop out."""
    first, last = nn.BatchNorm2d(1, affine=False), smooth(num_classes)
    return nn.Sequential(first, *last[:-1], nn.Dropout(0.5), last[-1])
