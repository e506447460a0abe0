"""DistributedDataParallel, two gloo processes: the step of one process on the union of the batches.

This file is its own worker: the test runs it as a script, once for each rank.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import drf_fast

pytestmark = pytest.mark.slow

WORLD, B, M, CLASSES, STEPS, SIGMA = 2, 3, 2, 5, 3, 0.25
SEEDS = [drf_fast.noise_key(9, step) for step in range(STEPS)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


def train(network: nn.Module, ranks: list[int]) -> dict[str, Any]:
    """DRF on the images of ``ranks``; the gradients, noisy batches, lambdas and weights."""
    attacked = (
        network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    )
    assert isinstance(attacked, nn.Module)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    ball = drf_fast.SoftBall(
        0.3, lambda0=0.5, lambda_lr=0.5, kappa=1000, form="prox", lambda_every=1
    )
    log: dict[str, Any] = {"noisy": [], "gradients": [], "lam": []}
    for step, seed in enumerate(SEEDS):
        generator = torch.Generator().manual_seed(step)
        x = torch.rand(WORLD, B, 1, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (WORLD, B), generator=generator)
        ids = torch.randperm(100, generator=generator)[: WORLD * B].reshape(WORLD, B)
        x, y, ids = (tensor[ranks].flatten(0, 1) for tensor in (x, y, ids))
        options: dict[str, Any] = {"sigma": SIGMA, "num_samples": M, "steps": 2, "ball": ball}
        found = drf_fast.attack(attacked, x, y, seed=seed, image_ids=ids, **options)
        optimizer.zero_grad()
        drf_fast.consistency_loss(network(found.noisy), y, M, lam=2.0).backward()
        optimizer.step()
        ball.update(found.distance)
        log["noisy"].append(found.noisy)
        log["gradients"].append([parameter.grad.clone() for parameter in network.parameters()])  # type: ignore[union-attr]
        log["lam"].append(ball.lam.clone())
    return {**log, "weights": [p.detach().clone() for p in network.parameters()]}


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD
    )
    log = train(nn.parallel.DistributedDataParallel(Net().double()), [rank])
    torch.manual_seed(0)  # on each rank alike, as training scripts do for equal weights
    log["fresh"] = drf_fast.noisy_repeat(torch.zeros(1, 8), 1.0, 1)
    torch.save(log, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> list[dict[str, Any]]:
    if not dist.is_available():
        pytest.skip("needs a torch with torch.distributed")
    folder = tmp_path_factory.mktemp("ddp")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def union() -> dict[str, Any]:
    return train(Net().double(), list(range(WORLD)))


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_and_weights_are_those_of_one_process_on_the_union(logs, union):
    for log in logs:
        for got, expected in zip(log["gradients"], union["gradients"], strict=True):
            assert all(near(a, b) for a, b in zip(got, expected, strict=True))
            assert all(float(b.abs().max()) > 1e-4 for b in expected)
        assert all(
            torch.equal(a, b) for a, b in zip(log["weights"], logs[0]["weights"], strict=True)
        )


def test_each_rank_attacks_its_own_images_under_their_own_noise(logs, union):
    for step in range(STEPS):
        batches = [log["noisy"][step] for log in logs]
        assert near(torch.cat(batches), union["noisy"][step])
        assert float((batches[0] - batches[1]).abs().max()) > 0.1
    assert not torch.equal(logs[0]["fresh"], logs[1]["fresh"])


def test_there_is_one_lambda(logs, union):
    for step in range(STEPS):
        assert torch.equal(logs[0]["lam"][step], logs[1]["lam"][step])
        assert near(logs[0]["lam"][step], union["lam"][step])
    assert len({float(lam) for lam in union["lam"]}) == STEPS


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
