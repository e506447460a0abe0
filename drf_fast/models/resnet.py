"""Residual networks: those of He et al. (2016) for CIFAR, and torchvision's ResNet-50.

The names of the weights are those of the published smoothing repositories (Cohen, Rosenfeld,
Kolter 2019 and its successors), so their checkpoints load.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x)).

    Where the shape changes the shortcut is a strided 1x1 convolution with batch norm (option B of
    He et al.), as in the published smoothing repositories.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_width != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        # In place: neither batch norm nor the sum needs its output for the backward.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + shortcut, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers: conv3x3, three stages of n blocks with 16, 32, 64 channels, fc.

    At 10 classes and 3 channels depth 20, 56, 110 has 272,474, 855,770, 1,730,714 parameters.

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    section 4.2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        # The published 8x8 pooling at 32x32; other image sizes work too.
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_width, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def resnet50(num_classes: int, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-50, randomly initialised: 25,557,032 parameters at 1,000 classes."""
    from torchvision.models import resnet  # takes a second, so only where it is used

    if in_channels != 3:
        raise ValueError(f"in_channels must be 3, got {in_channels}")
    return resnet.resnet50(weights=None, num_classes=num_classes)
