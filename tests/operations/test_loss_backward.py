"""The backward of the losses: it returns what forward kept; asked again, it recomputes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import drf_fast

OPERATIONS = ("smooth_ce", "consistency_loss", "macer_loss")
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "smooth_ce": drf_fast.smooth_ce,
    "consistency_loss": lambda z, y: drf_fast.consistency_loss(z, y, lam=2.0),
    "macer_loss": lambda z, y: drf_fast.macer_loss(z, y, sigma=0.5, lam=4.0),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 10, generator=generator) * 0.3
    return logits.requires_grad_(), torch.softmax(16 * logits.detach(), 2).mean(1).argmax(1)


@each_loss
def test_a_retained_graph_gives_its_gradient_again_though_the_first_was_changed(backend, loss):
    logits, target = case()
    value = loss(logits, target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    expected = first.clone()
    first.zero_()
    for _ in range(2):
        (again,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.equal(again, expected)
        again.fill_(7.0)
    (last,) = torch.autograd.grad(value, logits)
    assert torch.equal(last, expected)


@each_loss
def test_a_freed_graph_refuses_a_second_backward(backend, loss):
    logits, target = case()
    value = loss(logits, target)
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


@each_loss
def test_gradients_accumulate_in_a_leaf(backend, loss):
    logits, target = case()
    value = loss(logits, target)
    value.backward(retain_graph=True)
    assert logits.grad is not None
    once = logits.grad.clone()
    value.backward()
    assert torch.equal(logits.grad, 2 * once)


@each_loss
@pytest.mark.parametrize("factor", [1.0, 0.5, -3.0, 0.0])
def test_the_incoming_gradient_is_a_factor(backend, loss, factor):
    logits, target = case()
    (plain,) = torch.autograd.grad(loss(logits, target), logits)
    (scaled,) = torch.autograd.grad(loss(logits, target) * factor, logits)
    assert torch.equal(scaled, plain * factor)


def test_each_image_has_a_factor_of_its_own(backend):
    logits, target = case()
    factors = torch.arange(6.0)
    (plain,) = torch.autograd.grad(drf_fast.smooth_ce(logits, target, reduction="sum"), logits)
    values = drf_fast.smooth_ce(logits, target, reduction="none")
    (scaled,) = torch.autograd.grad((values * factors).sum(), logits)
    assert torch.equal(scaled, plain * factors.reshape(-1, 1, 1))


@each_loss
def test_logits_that_change_before_a_retained_second_backward_are_noticed(backend, loss):
    leaf, target = case()
    logits = leaf * 1.0
    value = loss(logits, target)
    torch.autograd.grad(value, logits, retain_graph=True)
    with torch.no_grad():
        logits.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, logits)


@pytest.mark.parametrize("name", ["consistency_loss", "macer_loss"])
def test_a_weight_that_changes_before_a_retained_second_backward_is_noticed(backend, name):
    logits, target = case()
    lam = torch.tensor(2.0, dtype=torch.float64)
    options = {"sigma": 0.5} if name == "macer_loss" else {}
    value = getattr(drf_fast, name)(logits, target, lam=lam, **options)
    torch.autograd.grad(value, logits, retain_graph=True)
    lam.fill_(20.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, logits)


@each_loss
def test_a_vectorised_jacobian_is_that_of_each_row(backend, loss):
    logits, target = case()

    def twice(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(z, target), 3 * loss(z, target)])

    jacobian = torch.autograd.functional.jacobian(twice, logits, vectorize=True)
    (row,) = torch.autograd.grad(loss(logits, target), logits)
    assert torch.allclose(jacobian, torch.stack([row, 3 * row]), rtol=1e-6, atol=0)


@each_loss
def test_a_gradient_scaler_reaches_the_gradient_of_float16_before_it_is_rounded(backend, loss):
    """Of a batch of 256 images, entries are below the smallest float16 without its factor."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(256, 16, 10, generator=generator)
    target = logits.mean(1).argmax(1)
    half = logits.half().requires_grad_()
    (got,) = torch.autograd.grad(loss(half, target) * 1024, half)
    full = half.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(loss(full, target) * 1024, full)
    assert got.dtype == torch.float16
    assert torch.equal(got, expected.half())
    assert float((got == 0).float().mean()) < 0.01
