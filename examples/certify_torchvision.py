"""Certify a torchvision network: here a ResNet-18, trained for some seconds first.

    python examples/certify_torchvision.py

With your own weights leave out ``train``, and normalise inside the model, after the noise:
``nn.Sequential(drf_fast.models.Normalize(mean, std), model)``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

import drf_fast
from drf_fast.data import batches, load

SIGMA = 0.5


class OnDigits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18(weights=None, num_classes=10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


def train(model: nn.Module, images: int) -> None:
    """Gaussian augmentation: the plainest training for a smoothed classifier."""
    data = load("mnist-mini", "train", limit=images)
    optimizer = torch.optim.Adam(model.parameters())
    for x, y, _ in batches(data, 64, shuffle_seed=0, epoch=0, drop_last=True):
        loss = F.cross_entropy(model(drf_fast.noisy_repeat(x, SIGMA, 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(images: int = 2000, certified: int = 5, n: int = 1000) -> list[tuple[int, int, float]]:
    """Returns (label, certified class or -1, radius) of each image."""
    torch.manual_seed(0)
    model, test = OnDigits(), load("mnist-mini", "test")
    train(model, images)
    smoothed = drf_fast.SmoothedClassifier(model.eval(), num_classes=10, sigma=SIGMA)
    results = []
    for i in range(certified):
        x, label = test.float_images([i])[0], int(test.labels[i])
        found, radius = smoothed.certify(x, n0=100, n=n, alpha=0.001, batch_size=250, image_id=i)
        results.append((label, found, radius))
        print(f"image {i}: a {label}, certified as {found} within an L2 radius of {radius:.2f}")
    return results


if __name__ == "__main__":
    main()
