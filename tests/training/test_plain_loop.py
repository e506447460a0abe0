"""A whole run against a loop in plain torch: noise, order, schedules, optimiser, lambda, metrics.

What changes from epoch to epoch is written here as the numbers themselves.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
import trained

import drf_fast
from drf_fast import data
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.training import step
from drf_fast.training.methods.common import Batch, MethodOptions

IMAGES, EPOCHS, SEED = 24, 3, 5
FLAGS = [
    "--arch", "trained:smooth", "--train-images", str(IMAGES), "--epochs", str(EPOCHS),
    "--seed", str(SEED), "--sigma", "0.3", "--num-samples", "2", "--device", "cpu",
    "--memory-format", "contiguous", "--threads", "1", "--certify-images", "0",
]  # fmt: skip


@dataclasses.dataclass
class Loop:
    """The flags of a run, and what they mean: one value for each epoch where it is a list."""

    method: str
    flags: str
    lr: list[float]
    epsilon: list[float] = dataclasses.field(default_factory=lambda: [])
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the method
    ball: dict[str, Any] | None = None  # of SoftBall; None is HardBall
    every: int | str = 1  # updates of lambda
    lambda_lr: float = 0.02
    kappa: int = 100
    images: int = 8  # of a step
    augment: str = "none"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4


LOOPS = {
    "gaussian": Loop("gaussian", "--batch-size 8 --lr 0.2", [0.2, 0.2, 0.002]),
    "published": Loop(
        "smoothadv",
        "--no-drf --epsilon 0.5 --warmup-epochs 2 --steps 2 --grad-norm batch --batch-size 16 "
        "--split-batches --lr 0.4 --lr-drops 0.34 --late-drop --momentum 0.8 --no-nesterov "
        "--weight-decay 0.1",
        [0.4, 0.4, 0.04],
        [0.25, 0.5, 0.5],
        {"steps": 2, "grad_norm": "batch"},
        momentum=0.8, nesterov=False, weight_decay=0.1,
    ),
    "drf": Loop(
        "smoothadv",
        "--epsilon 0.5 --lambda0 0.6 --lambda-lr 0.3 --kappa 5 --steps 3 --batch-size 8 --lr 0.3 "
        "--augment crop-flip",
        [0.3, 0.3, 0.003],
        3 * [0.5],
        {"steps": 3},
        {"lambda0": 0.6},
        lambda_lr=0.3, kappa=5, augment="crop-flip",
    ),
    "consistency with udr": Loop(
        "consistency",
        "--epsilon 0.2 --warmup-epochs 3 --form udr --tau 0.4 --lambda0 2 --lambda-every 2 "
        "--lambda-lr 0.5 --steps 2 --consistency-lam 3 --consistency-eta 0.7 --batch-size 8 "
        "--lr 0.2",
        [0.2, 0.2, 0.002],
        [0.2 / 3, 0.4 / 3, 0.2],
        {"steps": 2, "consistency_lam": 3.0, "consistency_eta": 0.7},
        {"form": "udr", "tau": 0.4, "lambda0": 2.0},
        every=2, lambda_lr=0.5,
    ),
    "lambda once an epoch": Loop(
        "smoothadv",
        "--epsilon 0.4 --form excess --lambda0 0.5 --lambda-every epoch --lambda-lr 0.5 --steps 2 "
        "--batch-size 9 --lr 0.2",
        [0.2, 0.2, 0.002],
        3 * [0.4],
        {"steps": 2},
        {"form": "excess", "lambda0": 0.5},
        every="epoch", lambda_lr=0.5, images=9,
    ),
    "macer": Loop(
        "macer",
        "--macer-lam 3 --macer-gamma 6 --macer-beta 2 --macer-after-drop --lr-drops 0.3 "
        "--batch-size 8 --lr 0.2",
        [0.2, 0.02, 0.02],
        options={"macer_lam": [0.0, 3.0, 3.0], "macer_gamma": 6.0, "macer_beta": 2.0},
    ),
    "smoothmix": Loop(
        "smoothmix",
        "--no-drf --steps 2 --mix-step 1 --mix-alpha 0.6 --mix-eta 4 --mix-warmup 2 "
        "--batch-size 8 --lr 0.2",
        [0.2, 0.2, 0.002],
        options={
            "steps": 2, "mix_step": 1, "mix_alpha": 0.6, "mix_eta": [2.0, 4.0, 4.0],
            "mix_radius": [0.3, 0.6, 0.6],
        },
    ),
    "stability": Loop(
        "stability", "--stability-lam 3 --batch-size 8 --lr 0.2", [0.2, 0.2, 0.002],
        options={"stability_lam": 3.0},
    ),
}  # fmt: skip
LOSSES = {
    "gaussian": plain.smoothadv, "smoothadv": plain.smoothadv, "consistency": plain.consistency,
    "macer": plain.macer, "smoothmix": plain.smoothmix, "stability": plain.stability,
}  # fmt: skip


class Plainly:
    """The run in plain torch; ``metrics`` has one entry for each epoch."""

    def __init__(self, loop: Loop, images: data.Dataset) -> None:
        self.loop, self.net = loop, trained.smooth(10)
        self.velocity = [torch.zeros_like(p) for p in self.net.parameters()]
        self.ball = self.new_ball()
        self.lam, self.seen, self.step = float(self.ball.lam or 0) if self.ball else 0.0, [], 0
        self.metrics = [self.epoch(number, images) for number in range(EPOCHS)]

    def new_ball(self) -> Any:
        if not self.loop.epsilon:
            return None
        if self.loop.ball is None:
            return drf_fast.HardBall(self.loop.epsilon[0])
        return drf_fast.SoftBall(self.loop.epsilon[0], **self.loop.ball)

    def epoch(self, number: int, images: data.Dataset) -> dict[str, float]:
        loop, sums = self.loop, {"loss": 0.0, "distance": 0.0}
        values = {
            name: value[number] if isinstance(value, list) else value
            for name, value in loop.options.items()
        }
        options = MethodOptions(sigma=0.3, num_samples=2, **values)
        batches = data.batches(
            images, loop.images, shuffle_seed=SEED, epoch=number, augment=loop.augment
        )
        for x, target, ids in batches:
            batch = Batch(x, target, drf_fast.noise_key(SEED, self.step), ids)
            if self.ball is not None:
                self.ball.epsilon = loop.epsilon[number]
                if loop.ball is not None:
                    self.ball.lam = self.lam
            loss = LOSSES[loop.method](self.net, batch, options, self.ball)
            distance = self.distance(batch, options)
            self.descend(loss, loop.lr[number])
            self.step += 1
            self.seen = (self.seen + distance)[-loop.kappa :]
            if isinstance(loop.every, int) and self.step % loop.every == 0:
                self.change(loop.epsilon[number] if loop.epsilon else 0.0)
            sums["loss"] += loss.item() * len(x) / IMAGES
            sums["distance"] += sum(distance) / IMAGES
        if loop.every == "epoch":
            self.change(loop.epsilon[number])
        return {**sums, "lambda": self.lam, "lr": loop.lr[number]}

    def distance(self, batch: Batch, options: MethodOptions) -> list[float]:
        moved = plain.adversarial(self.net, batch, options, self.ball).x - batch.x
        return moved.flatten(1).norm(dim=1).tolist()

    def descend(self, loss: torch.Tensor, lr: float) -> None:
        """SGD with momentum and an L2 penalty."""
        parameters, loop = list(self.net.parameters()), self.loop
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, gradient, v in zip(parameters, gradients, self.velocity, strict=True):
                gradient = gradient + loop.weight_decay * p
                v.mul_(loop.momentum).add_(gradient)
                p -= lr * (gradient + loop.momentum * v if loop.nesterov else v)

    def change(self, epsilon: float) -> None:
        if self.loop.ball is not None:
            mean = sum(self.seen) / len(self.seen)
            self.lam = max(0.0, self.lam - self.loop.lambda_lr * (epsilon - mean))


def run(folder: Path, *flags: str) -> dict[str, Any]:
    assert main(["train", "--out", str(folder), *FLAGS, *flags]) == 0
    return checkpoint.load(folder / "checkpoint.pt")


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_is_the_plain_loop(tmp_path, name):
    loop = LOOPS[name]
    done = run(tmp_path / "r", "--method", loop.method, *loop.flags.split())
    expected = Plainly(loop, data.load("mnist-mini", "train", limit=IMAGES))
    assert done["step"] == expected.step == EPOCHS * -(-IMAGES // loop.images)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").open()]
    for row, plainly in zip(rows, expected.metrics, strict=True):
        assert row["lr"] == pytest.approx(plainly["lr"])
        assert row["loss"] == pytest.approx(plainly["loss"], rel=1e-4)
        assert ("epsilon" in row) == ("distance" in row and loop.method != "smoothmix")
        if loop.epsilon:
            assert plainly["distance"] > 0.05
            assert row["distance"] == pytest.approx(plainly["distance"], rel=1e-4)
            assert row["epsilon"] == pytest.approx(loop.epsilon[row["epoch"] - 1])
        if loop.ball is not None:
            assert row["lambda"] == pytest.approx(plainly["lambda"], rel=1e-4)
    for key, value in expected.net.state_dict().items():
        far = float((value - trained.smooth(10).state_dict()[key]).abs().max())
        assert float((done["model"][key] - value).abs().max()) < 1e-3 * far


def test_statistics_are_those_of_the_training_batches_and_of_no_test_image(tmp_path):
    flags = ["--arch", "trained:restless", "--method", "gaussian", "--batch-size", "8"]
    done = run(tmp_path / "r", *flags)
    images, at = data.load("mnist-mini", "train", limit=IMAGES), 0
    mean, variance = torch.zeros(1), torch.ones(1)
    for epoch in range(EPOCHS):
        for x, _, ids in data.batches(images, 8, shuffle_seed=SEED, epoch=epoch):
            key = drf_fast.noise_key(SEED, at)
            rows = drf_fast.noisy_repeat(x, 0.3, 2, seed=key, image_ids=ids)
            mean = 0.9 * mean + 0.1 * rows.mean()
            variance = 0.9 * variance + 0.1 * rows.var()
            at += 1
    assert torch.allclose(done["model"]["0.running_mean"], mean, rtol=1e-5, atol=0)
    assert torch.allclose(done["model"]["0.running_var"], variance, rtol=1e-5, atol=0)


def test_several_processes_save_the_mean_of_their_statistics(monkeypatch):
    net: Any = trained.restless(10)
    net[0].running_mean, net[0].running_var = torch.tensor([0.3]), torch.tensor([2.0])

    def add(values: torch.Tensor) -> None:
        values += torch.tensor([0.1, 1.0])  # those of the other process

    monkeypatch.setattr(step.processes, "count", lambda: 2)
    monkeypatch.setattr(step.processes, "all_reduce_sum", add)
    step._average_statistics(net)
    assert [net[0].running_mean.item(), net[0].running_var.item()] == pytest.approx([0.2, 1.5])


def test_a_resumed_run_drops_the_same_units_and_ends_with_the_same_bits(tmp_path):
    flags = ["--arch", "trained:restless", "--steps", "1", "--batch-size", "8", "--lr", "0.2"]
    whole = run(tmp_path / "whole", *flags)
    stopped = run(tmp_path / "r", *flags, "--max-steps", "4")  # within the second epoch
    assert stopped["step"] == 4
    resumed = run(tmp_path / "r", *flags, "--resume")
    assert resumed["step"] == whole["step"] == 9
    for key, value in whole["model"].items():
        assert torch.equal(resumed["model"][key], value), key
    assert torch.equal(resumed["ball"]["lam"], whole["ball"]["lam"])
