"""Autocast and activation checkpointing around losses, noise and the attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import drf_fast

OPERATIONS = ("noisy_repeat", "noisy_repeat_backward", "smooth_ce", "adversary_step")
B, M, CLASSES, SIGMA = 3, 4, 5, 0.25
IDS = torch.tensor([3, 1, 40])
TARGET = torch.tensor([0, 4, 2])
LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "smooth_ce": lambda z: drf_fast.smooth_ce(z, TARGET, M),
    "consistency_loss": lambda z: drf_fast.consistency_loss(z, TARGET, M, lam=2.0),
    "macer_loss": lambda z: drf_fast.macer_loss(z, TARGET, M, sigma=SIGMA, lam=2.0),
}


class Net(nn.Module):
    """Keeps what it is given, the recomputation of a checkpoint included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, CLASSES)
        )
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.detach().clone())
        return self.body(x)


def images() -> torch.Tensor:
    return torch.rand(B, 1, 6, 6, generator=torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_inside_autocast_is_that_of_the_bf16_logits_in_float32(name):
    model = Net()
    rows = drf_fast.noisy_repeat(images(), SIGMA, M, seed=1, image_ids=IDS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows)
        logits.retain_grad()
        loss = LOSSES[name](logits)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    plain = logits.detach().clone().requires_grad_()
    expected = LOSSES[name](plain)
    expected.backward()
    assert torch.equal(loss, expected)
    assert logits.grad is not None and plain.grad is not None
    assert logits.grad.dtype == torch.bfloat16 and torch.equal(logits.grad, plain.grad)
    exact = LOSSES[name](plain.detach().float())
    assert torch.allclose(loss.detach(), exact, rtol=1e-6)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_an_attack_inside_autocast_is_one_on_a_network_that_runs_in_it():
    model, x = Net(), images()

    def autocast_model(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(rows)

    options: dict[str, Any] = {"sigma": SIGMA, "num_samples": M, "steps": 3, "image_ids": IDS}
    options |= {"ball": drf_fast.HardBall(0.5), "seed": 5}
    with torch.autocast("cpu", torch.bfloat16):
        inside = drf_fast.attack(model, x, TARGET, **options)
    around = drf_fast.attack(autocast_model, x, TARGET, **options)
    for name in ("x", "noisy", "distance"):
        got = getattr(inside, name)
        assert torch.equal(got, getattr(around, name)) and got.dtype == torch.float32
    full = drf_fast.attack(model, x, TARGET, **options)
    assert not torch.equal(inside.x, full.x)  # bf16 did run
    assert float((inside.x - full.x).abs().max()) < 0.05


# -------------------------------------------------------------------------------- checkpointing

reentrant = pytest.mark.parametrize("use_reentrant", [True, False])


def noisy_loss(model: nn.Module, x: torch.Tensor, seed: int | None) -> torch.Tensor:
    ids = None if seed is None else IDS
    noisy = drf_fast.noisy_repeat(x, SIGMA, M, seed=seed, image_ids=ids)
    return drf_fast.smooth_ce(model(noisy), TARGET, M)


def gradients(model: Net, x: torch.Tensor, loss: torch.Tensor) -> list[torch.Tensor | None]:
    loss.backward()
    return [x.grad, *[parameter.grad for parameter in model.parameters()]]


@reentrant
@pytest.mark.parametrize("seed", [None, 7])
def test_the_recomputation_sees_the_same_noise(backend, seed, use_reentrant):
    plain, x = Net(), images().requires_grad_()
    torch.manual_seed(11)  # governs the key where there is no seed
    expected = gradients(plain, x, noisy_loss(plain, x, seed))

    model, again = Net(), images().requires_grad_()
    torch.manual_seed(11)
    loss: Any = checkpoint(noisy_loss, model, again, seed, use_reentrant=use_reentrant)
    torch.rand(5)  # what else draws from the generator before backward
    got = gradients(model, again, loss)
    first, second = model.inputs
    assert torch.equal(first, second) and torch.equal(first, plain.inputs[0])
    for a, b in zip(got, expected, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


@reentrant
def test_a_fresh_key_needs_the_rng_state_and_a_seed_does_not(use_reentrant):
    """What the test above would find if torch did not restore its generator."""
    for seed in (None, 7):
        model, x = Net(), images().requires_grad_()
        options = {"use_reentrant": use_reentrant, "preserve_rng_state": False}
        loss: Any = checkpoint(noisy_loss, model, x, seed, **options)
        loss.backward()
        assert torch.equal(*model.inputs) is (seed is not None)


@reentrant
def test_checkpointed_blocks_inside_an_attacked_network(use_reentrant):
    model, x = Net(), images()

    def rematerialising(rows: torch.Tensor) -> torch.Tensor:
        return checkpoint(model, rows, use_reentrant=use_reentrant)  # type: ignore[return-value]

    def run(network: Callable[[torch.Tensor], torch.Tensor]) -> drf_fast.AttackResult:
        ball = drf_fast.SoftBall(0.5, lambda0=0.3)
        options: dict[str, Any] = {"sigma": SIGMA, "num_samples": M, "steps": 2, "ball": ball}
        return drf_fast.attack(network, x, TARGET, seed=5, image_ids=IDS, **options)

    if use_reentrant:  # torch's reentrant form works with backward() alone
        with pytest.raises(RuntimeError, match="use_reentrant"):
            run(rematerialising)
    else:
        assert torch.equal(run(rematerialising).noisy, run(model).noisy)
        assert len(model.inputs) == 2 * 2 + 2
