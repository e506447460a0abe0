"""Published networks, unmodified, through the Python interface.

The loop of 2019 runs in eager fp32 at its fastest batch size; ``SmoothedClassifier`` chooses its
own. The training step is that of published SmoothAdv, and the same with ``faster`` and ``attack``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import drf_fast
from drf_fast import data, models

BATCH, M, STEPS, SIGMA, EPSILON, N = 64, 4, 10, 0.5, 1.0, 2000
CERTIFIERS: dict[str, dict[str, Any]] = {
    "eager, the loop of 2019": {},
    "drf_fast fp32": {},
    "drf_fast bf16": {"precision": "bf16"},
    "drf_fast bf16 compiled": {"precision": "bf16", "compile": True},
}


class PublishedLeNet(nn.Module):
    """Convolution, ReLU, pooling and ``view``, as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 800))))


def network(name: str, device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    """The network and one image."""
    torch.manual_seed(0)
    if name == "LeNet":
        train = data.load("mnist-mini", "train")
        return PublishedLeNet().to(device), train.float_images([0])[0].to(device)
    resnet = models.build("resnet20", 10, (3, 32, 32)).to(device)
    return resnet, torch.rand(3, 32, 32, device=device)


def best_batch(model: nn.Module, x: torch.Tensor) -> int:
    """The batch size at which the published loop is fastest."""

    def seconds(size: int) -> float:
        rounds = []
        for _ in range(3):
            start = time.perf_counter()
            published.sample_under_noise(model, x, SIGMA, 1024, size, 10)
            rounds.append(time.perf_counter() - start)
        return min(rounds)

    return min((64, 128, 256, 512, 1024), key=seconds)


@pytest.mark.parametrize("provider", CERTIFIERS)
@pytest.mark.parametrize("name", ["LeNet", "ResNet-20"])
def test_certify_a_published_network(run, device, name, provider):
    model, x = network(name, device)
    model.eval()
    if provider == "eager, the loop of 2019":
        size = best_batch(model, x)
        function: Callable[[], Any] = lambda: published.certify(  # noqa: E731
            model, x, SIGMA, 100, N, 0.001, size
        )
    else:
        smoothed = drf_fast.SmoothedClassifier(model, 10, SIGMA, **CERTIFIERS[provider])
        function = lambda: smoothed.certify(x, 100, N, 0.001)  # noqa: E731
    group = f"certify one image, published {name}, n = {N}"
    run(group, provider, function, 4 * x.numel() * N, rounds=5)


@pytest.mark.parametrize("provider", ["eager", "faster fp32", "faster bf16"])
def test_training_step_of_a_published_network(run, device, provider):
    train, ids = data.load("mnist-mini", "train"), torch.arange(BATCH, device="cpu")
    x, target = train.float_images(ids).to(device), train.labels[ids].to(device)
    torch.manual_seed(0)
    model: nn.Module = PublishedLeNet().to(device)
    half = provider.endswith("bf16")

    def precision() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    if provider != "eager":
        with precision():
            model = drf_fast.faster(model, x.repeat_interleave(M, dim=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    ball = drf_fast.HardBall(EPSILON)

    def step() -> None:
        with precision():
            noisy = drf_fast.attack(
                model, x, target, sigma=SIGMA, num_samples=M, steps=STEPS, ball=ball
            ).noisy
            loss = F.cross_entropy(model(noisy).float(), target.repeat_interleave(M))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def eager() -> None:
        published.training_step(model, optimizer, x, target, SIGMA, M, STEPS, EPSILON)

    group = f"training step, SmoothAdv, published LeNet, {BATCH} images, m = {M}, T = {STEPS}"
    moved = 4 * BATCH * M * 28 * 28 * (STEPS + 1)
    run(group, provider, eager if provider == "eager" else step, moved, rounds=5)
