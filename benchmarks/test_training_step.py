"""A whole training step of SmoothAdv with LeNet, and the same passes through the network alone.

The published step is eager code in the default memory format. drf_fast's is that of ``drf-fast
train``, on a GPU a CUDA graph. "network only" is the lower bound for any code around the network:
the T + 1 forward and backward passes, uncaptured, in the format that drf_fast chose.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch

from drf_fast import HardBall, data, models, noise_key
from drf_fast.config.options import TrainConfig
from drf_fast.runtime import machine
from drf_fast.training import schedule
from drf_fast.training.graphs import GraphedSteps
from drf_fast.training.methods.common import Batch
from drf_fast.training.run import Run, Totals
from drf_fast.training.step import descend, one_step

BATCH, M, STEPS, SIGMA, EPSILON = 64, 4, 10, 0.5, 1.0
PROVIDERS = (
    "eager",
    "drf_fast fp32",
    "network only fp32",
    "drf_fast bf16",
    "network only bf16",
)


def network(precision: str, device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """LeNet as ``drf-fast train`` places it, and its optimizer."""
    torch.manual_seed(0)
    model = models.build("lenet", 10, (1, 28, 28))
    model = machine.place(model, device, "auto", precision, (1, 28, 28), BATCH * M).network
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def training_step(provider: str) -> Callable[[], Any]:
    """One step as a function without arguments."""
    device = machine.pick_device("auto")
    ids = torch.arange(BATCH, device=device)
    train = data.load("mnist-mini", "train")
    x, target = train.float_images(ids.cpu()).to(device), train.labels[ids.cpu()].to(device)
    if provider == "eager":
        model = published.lenet().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        return lambda: published.training_step(
            model, optimizer, x, target, SIGMA, M, STEPS, EPSILON
        )
    precision = provider.split()[-1]
    model, optimizer = network(precision, device)
    if provider.startswith("network only"):
        return passes(model, precision, x, target)
    config = TrainConfig(
        method="smoothadv",
        drf=False,
        sigma=SIGMA,
        num_samples=M,
        steps=STEPS,
        epsilon=EPSILON,
        batch_size=BATCH,
        precision="bf16" if precision == "bf16" else "fp32",
    )
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    graphs = GraphedSteps(descend) if device.type == "cuda" else None
    run = Run(
        config, Path(), train, train, device, model, model, optimizer, HardBall(EPSILON),
        Totals(sums), graphs,
    )  # fmt: skip
    options = schedule.options(config, 0)

    def step() -> None:
        one_step(run, Batch(x, target, noise_key(0, run.step), ids), options)

    return step


def passes(
    model: torch.nn.Module, precision: str, x: torch.Tensor, target: torch.Tensor
) -> Callable[[], None]:
    """The forward and backward passes of a step and nothing else."""
    rows = x.repeat_interleave(M, dim=0) + SIGMA * torch.randn(BATCH * M, *x.shape[1:])
    weights, image = list(model.parameters()), rows.clone().requires_grad_()
    gradient = torch.randn(BATCH * M, 10)

    def run() -> None:
        model.eval()
        for parameter in weights:
            parameter.requires_grad_(False)
        for _ in range(STEPS):
            with machine.autocast(x.device, precision):
                logits = model(image)
            torch.autograd.grad(logits, image, gradient.to(logits.dtype))
        for parameter in weights:
            parameter.requires_grad_(True)
        model.train()
        with machine.autocast(x.device, precision):
            logits = model(rows)
        torch.autograd.grad(logits, weights, gradient.to(logits.dtype))

    return run


@pytest.mark.parametrize("provider", PROVIDERS)
def test_training_step(run, provider):
    pixels = BATCH * M * 28 * 28
    group = f"training step, SmoothAdv, LeNet, {BATCH} images, m = {M}, T = {STEPS}"
    run(group, provider, training_step(provider), 4 * pixels * (STEPS + 1))
