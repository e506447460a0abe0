"""Train your own network on your own data with DRF: any nn.Module, any images in [0, 1].

    python examples/drf_own_network.py

``attack`` looks for noisy copies that raise the loss of the smoothed network. The soft ball charges
a price lambda for their distance; training adapts lambda until the mean distance is epsilon.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import drf_fast
from drf_fast.data import load

SIGMA, M, STEPS, EPSILON = 0.5, 2, 2, 1.0


def my_network() -> nn.Module:
    """Your network; if it normalises, do so in its first layer, so that noise comes before it."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


def main(images: int = 4000, epochs: int = 2) -> tuple[float, float]:
    """Train; returns the last mean distance of the adversary, and lambda."""
    torch.manual_seed(0)
    data = load("mnist-mini", "train", limit=images)
    mine = TensorDataset(data.float_images(slice(None)), data.labels)  # stands for your data
    loader = DataLoader(mine, batch_size=64, shuffle=True)
    model, ball = my_network(), drf_fast.SoftBall(EPSILON)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    distance = 0.0
    for epoch in range(epochs):
        distances = []
        for x, y in loader:
            found = drf_fast.attack(model, x, y, sigma=SIGMA, num_samples=M, steps=STEPS, ball=ball)
            loss = F.cross_entropy(model(found.noisy), y.repeat_interleave(M))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ball.update(found.distance)  # lambda changes
            distances.append(found.distance.mean())
        distance = torch.stack(distances).mean().item()
        print(f"epoch {epoch + 1}: distance {distance:.2f}, lambda {ball.lam.item():.2f}")
    return distance, ball.lam.item()


if __name__ == "__main__":
    main()
