"""A linear classifier of mnist-mini, fitted by least squares: smoothing does not change its
decisions, so that distances to its decision boundary are known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from drf_fast import data
from drf_fast.checkpoints import ours as checkpoint

SIGMA = 0.5


class Linear(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(784, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class WithoutGradient(Linear):
    """The same decisions without a gradient to the images, as behind a denoiser under no_grad."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(x)


def fitted() -> Linear:
    """Ridge regression on the labels, of 4,000 training images."""
    images = data.load("mnist-mini", "train")
    x = images.float_images(slice(0, 4000)).flatten(1).double() - 0.13
    y = 10 * nn.functional.one_hot(images.labels[:4000], 10).double() - 1
    weights = torch.linalg.solve(x.T @ x + 1000 * torch.eye(784, dtype=torch.float64), x.T @ y)
    network = Linear()
    with torch.no_grad():
        network.fc.weight.copy_(weights.T)
        network.fc.bias.copy_(-0.13 * weights.sum(0))
    return network


def saved(folder: Path) -> Path:
    """The classifier as a checkpoint, to be run with ``--arch linear:Linear``."""
    path = folder / "checkpoint.pt"
    content = {"model": fitted().state_dict(), "arch": "linear:Linear", "num_classes": 10}
    config = {"sigma": SIGMA, "data": "mnist-mini", "method_label": "linear", "normalize": "none"}
    checkpoint.save(path, {**content, "image_shape": [1, 28, 28], "config": config})
    return path
