"""The LeNet of the MNIST experiments (Wang, Zhou, Liu 2024): 431,080 parameters at 10 classes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from drf_fast.ops.pooling import conv_pool_relu


class LeNet(nn.Module):
    """conv5x5 -> 20, pool, ReLU, conv5x5 -> 50, pool, ReLU, fc 500, ReLU, fc K, for 28x28 images.

    Pooling comes before ReLU: they commute, and ReLU then processes a quarter of the elements.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = conv_pool_relu(self.conv1, x)
        x = conv_pool_relu(self.conv2, x)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)
