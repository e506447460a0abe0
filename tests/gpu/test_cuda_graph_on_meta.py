"""CUDA graphs: a capture neither synchronises with the device nor freezes a number that changes.

Without a GPU this is tested on the meta device, where tensors have no memory: an operation that
reads a value fails there, and each is checked for tensors on the CPU, which cannot be captured. The
code above the backends only distinguishes the CPU from other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_step import CLASSES, B, M, OnOneDevice, example, small_network
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import drf_fast
from drf_fast.balls import ball_arguments
from drf_fast.certification.network import Form, RunNetwork
from drf_fast.certification.noise import GaussianNoise
from drf_fast.certification.passes import Votes
from drf_fast.certification.votes import NoisyVotes
from drf_fast.ops import checks as _checks
from drf_fast.runtime import machine


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch) -> None:
    monkeypatch.delenv("DRF_FAST_DEBUG", raising=False)  # which reads values
    # Outside these tests a number on the meta device is an error; here it stands in for a GPU's.
    monkeypatch.setattr(_checks, "has_value", lambda tensor, name: tensor)


def device_number(value: float) -> torch.Tensor:
    return torch.full((), value, dtype=torch.float64, device="meta")


def key() -> torch.Tensor:
    return torch.full((), 5, dtype=torch.int64, device="meta")


def images() -> torch.Tensor:
    return torch.rand(B, 3, 8, 8, device="meta")


def noise() -> dict[str, Any]:
    ids = torch.arange(B, device="meta")
    return {"sigma": device_number(0.5), "seed": key(), "image_ids": ids}


def logits_and_target() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.rand(B * M, CLASSES, device="meta", requires_grad=True)
    return logits, torch.zeros(B, dtype=torch.int64, device="meta")


def prepared_noisy_repeat() -> Callable[[], Any]:
    x, names = images().requires_grad_(), noise()
    return lambda: drf_fast.noisy_repeat(x, num_samples=M, **names).sum().backward()


def prepared_noisy_levels() -> Callable[[], Any]:
    u = torch.zeros(B, 3, 8, 8, dtype=torch.uint8, device="meta")
    names: dict[str, Any] = {"seed": key(), "image_ids": torch.arange(B, device="meta")}

    def run() -> torch.Tensor:
        return drf_fast.noisy_levels(u, 0.5, M, **names)

    run()  # makes the table, as calls before a capture do
    return run


def prepared_losses() -> Callable[[], Any]:
    logits, target = logits_and_target()
    lam, sigma, eta, gamma, beta = (device_number(v) for v in (2.0, 0.5, 0.5, 8.0, 16.0))

    def run() -> None:
        loss = drf_fast.smooth_ce(logits, target, M)
        loss = loss + drf_fast.consistency_loss(logits, target, M, lam=lam, eta=eta)
        loss = loss + drf_fast.macer_loss(
            logits, target, M, sigma=sigma, lam=lam, gamma=gamma, beta=beta
        )
        loss.backward()

    return run


def prepared_adversary_step() -> Callable[[], Any]:
    x, names = images(), noise()
    grad = x.repeat_interleave(M, 0)
    step_size, ball = device_number(0.5), drf_fast.HardBall(device_number(1.0))
    return lambda: drf_fast.adversary_step(grad, x, x, step_size=step_size, ball=ball, **names)


def prepared_counting() -> Callable[[], Any]:
    logits, _ = logits_and_target()
    counts = torch.zeros(B, CLASSES, dtype=torch.int64, device="meta")
    trials = torch.full((B,), 100, device="meta")
    alpha, sigma = device_number(0.001), device_number(0.5)

    def run() -> None:
        top = drf_fast.vote(logits, counts).amax(1)
        drf_fast.clopper_pearson_lower(top, trials, alpha)
        drf_fast.certified_radius(top, trials, sigma=sigma, alpha=alpha)

    return run


def prepared_pass_of_certification() -> Callable[[], Any]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)).to("meta")
    runner = RunNetwork(model, precision="fp32", compile=False, memory_format="contiguous")
    runner.form = Form("contiguous", "fp32", False)
    runner._run = lambda network, form, rows: model(rows)  # the meta device has no autocast
    # Parameters of the noise are equal in all passes, as on a GPU, where a graph may capture them.
    noise = GaussianNoise(device_number(0.5), key())  # type: ignore[arg-type]
    votes = NoisyVotes(runner, CLASSES, noise)
    offset = torch.zeros((), dtype=torch.int64, device="meta")
    counts = torch.zeros(B, CLASSES, dtype=torch.int64, device="meta")
    held = Votes(images(), torch.arange(B, device="meta"), offset, counts)
    return lambda: votes._step("estimation", B * M, held, M)


PREPARED = {
    "pass_of_certification": prepared_pass_of_certification,
    "noisy_repeat": prepared_noisy_repeat,
    "noisy_levels": prepared_noisy_levels,
    "losses": prepared_losses,
    "adversary_step": prepared_adversary_step,
    "counting": prepared_counting,
}


@pytest.mark.parametrize("name", PREPARED)
def test_no_operation_reads_the_device_or_takes_a_number_from_the_cpu(name):
    run = PREPARED[name]()
    with OnOneDevice() as watch:
        run()
    assert any(name.startswith("drf_fast.") for name in watch.names)


def test_the_watch_sees_what_it_looks_for():
    x = images()
    for read in (float, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.nonzero):
        with OnOneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
            read(x.sum())
    with OnOneDevice(), pytest.raises(AssertionError, match="has a tensor on cpu"):
        drf_fast.noisy_repeat(x, torch.ones((), dtype=torch.float64), M)


def fake_step(ball: drf_fast.SoftBall) -> Any:
    ball.epsilon = device_number(1.0)
    # As after the warm-up steps.
    ball.lam = device_number(0.5)
    ball._window = torch.zeros(ball.kappa, dtype=torch.float64, device="meta")
    with torch.device("meta"):
        model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return example.DRFStep(model, optimizer, ball, images())


@pytest.mark.parametrize("form", ["prox", "excess", "shrink", "udr"])
def test_the_step_of_the_example_stays_on_the_device(form):
    ball = drf_fast.SoftBall(1.0, kappa=5, form=form)
    step = fake_step(ball)
    lam, window = ball.lam, ball._window
    step()  # warms up
    with OnOneDevice() as watch:
        loss = step()
    assert loss.device.type == "meta" and loss.shape == ()
    ours = [name for name in watch.names if name.startswith("drf_fast.")]
    assert len(ours) == 1 + 2 * step.attack_steps + 1
    assert ball.lam is lam and ball._window is window  # changed in place


def test_the_step_of_the_example_trains():
    """On the CPU, as an ordinary step: the loss decreases, lambda and the noise change."""
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.rand(8, 3, 8, 8)
    y = (x.flatten(1).mean(1) > x.mean()).long()
    step = example.DRFStep(model, optimizer, drf_fast.SoftBall(0.2, kappa=8, lambda_every=1), x)
    losses, lambdas = [], []
    for number in range(30):
        step.load(x, y, torch.arange(8), drf_fast.noise_key(0, number))
        losses.append(float(step()))
        lambdas.append(float(step.ball.lam))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert len(set(lambdas)) == 30
    assert int(step.key) == drf_fast.noise_key(0, 29)


def test_the_price_of_a_ball_with_tau_copies_nothing_to_the_device():
    """With lambda on the GPU and the step size on the CPU, as in ``attack``."""
    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    ball = drf_fast.SoftBall(1.0, form="udr", tau=0.5)
    with FakeTensorMode():
        ball.lam = torch.full((), 0.5, dtype=torch.float64, device="cuda:0")
        step_size = torch.full((), 0.25, dtype=torch.float64)
        with Names():
            form, _, price = ball_arguments(ball, step_size)
    assert form == "udr" and price.device == ball.lam.device and price.dtype == torch.float64
    assert "aten.mul.Tensor" in names and not any("copy" in name for name in names)


def test_batches_are_copied_from_memory_that_stays_in_its_place(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    x = torch.rand(3)
    assert machine.moved(x, torch.device("cpu")) is x and not pinned
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        there = machine.moved(fake, torch.device("cuda", 0))
    assert there.device == torch.device("cuda", 0) and pinned[0] is fake
