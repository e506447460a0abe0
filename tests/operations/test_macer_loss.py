"""macer_loss against the plain formula in float64: values, gradients, the hinge, identities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from formulas import assert_close, assert_gradients_close, with_gradient

import drf_fast

OPERATIONS = ("macer_loss",)
SHAPES = [(8, m, K) for m in (1, 3, 16) for K in (2, 7, 10, 1000)]
HALVES = [torch.bfloat16, torch.float16]
PARAMETERS: dict[str, Any] = {"sigma": 0.5, "lam": 12.0, "gamma": 8.0, "beta": 16.0}


def plain(
    logits: torch.Tensor,
    target: torch.Tensor,
    sigma: float,
    lam: float,
    gamma: float = 8.0,
    beta: float = 16.0,
) -> torch.Tensor:
    """The formula as it is written, image by image, in float64; autograd gives the gradient."""
    total = torch.zeros((), dtype=torch.float64)
    normal = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    )
    for rows, label in zip(logits, target.tolist(), strict=True):
        total = total - torch.log(torch.softmax(rows, dim=1).mean(0)[label] + 1e-10)
        p, classes = torch.softmax(beta * rows, dim=1).mean(0).topk(2)
        if int(classes[0]) == label:
            xi = normal.icdf(p[0]) - normal.icdf(p[1])
            if bool(xi.isfinite() & (xi <= gamma)):
                total = total + lam * sigma / 2 * (gamma - xi)
    return total / len(logits)


def case(shape: tuple[int, int, int], scale: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits near enough for the hinge to be active; most labels are the predicted class."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    target = torch.softmax(16 * logits, 2).mean(1).argmax(1)
    target[::4] = torch.randint(shape[2], target[::4].shape, generator=generator)
    return logits, target


def hinges(logits: torch.Tensor, target: torch.Tensor) -> float:
    """How much of the loss is the second term; 0 means that a test does not reach it."""
    full, none = plain(logits, target, 0.5, 12.0), plain(logits, target, 0.5, 0.0)
    return float(full - none)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-11)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_formula(backend, shape, dtype, tolerance):
    logits, target = case(shape)
    logits = logits.to(dtype)
    value, grad = with_gradient(lambda z: drf_fast.macer_loss(z, target, **PARAMETERS), logits)
    true_value, true_grad = with_gradient(lambda z: plain(z, target, **PARAMETERS), logits.double())
    assert hinges(logits.double(), target) > 1
    assert value.dtype == grad.dtype == dtype
    assert_close(value, true_value, tolerance)
    assert_gradients_close(grad, true_grad, tolerance)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_loses_only_the_rounding_of_its_gradient(backend, dtype):
    logits, target = case((8, 3, 10))
    half = logits.to(dtype)
    value, grad = with_gradient(lambda z: drf_fast.macer_loss(z, target, **PARAMETERS), half)
    true_value, true_grad = with_gradient(lambda z: plain(z, target, **PARAMETERS), half.double())
    assert value.dtype == torch.float32 and grad.dtype == dtype
    assert_close(value, true_value, 1e-6)
    assert_gradients_close(grad, true_grad, 0.51 * torch.finfo(dtype).eps)


def test_every_layout_of_the_same_logits_gives_the_same_numbers(backend):
    logits, target = case((5, 3, 7))
    value, grad = with_gradient(lambda z: drf_fast.macer_loss(z, target, **PARAMETERS), logits)
    sample_major = logits.transpose(0, 1).contiguous()
    layouts = {
        "2-D": (logits.reshape(15, 7), {"num_samples": 3}, lambda g: g.reshape(5, 3, 7)),
        "sample-major 3-D": (sample_major, {"sample_dim": 0}, lambda g: g.transpose(0, 1)),
        "sample-major 2-D": (
            sample_major.reshape(15, 7),
            {"num_samples": 3, "sample_dim": 0},
            lambda g: g.reshape(3, 5, 7).transpose(0, 1),
        ),
    }
    for name, (z, options, back) in layouts.items():
        other, other_grad = with_gradient(
            lambda z: drf_fast.macer_loss(z, target, **PARAMETERS, **options),  # noqa: B023
            z,
        )
        assert torch.equal(other, value), name
        assert torch.equal(back(other_grad), grad), name


def test_without_lam_it_is_the_log_of_the_mean_probability(backend):
    logits, target = case((6, 4, 10), scale=2.0)
    got = drf_fast.macer_loss(logits, target, sigma=0.5, lam=0.0)
    mean = torch.softmax(logits, 2).mean(1)[torch.arange(6), target]
    assert_close(got, -(mean + 1e-10).log().mean(), 1e-14)


def test_the_floor_of_1e_10_bounds_the_loss(backend):
    logits = torch.tensor([[[0.0, 1e4]]], dtype=torch.float64)
    value, grad = with_gradient(
        lambda z: drf_fast.macer_loss(z, torch.tensor([0]), sigma=0.5, lam=1.0), logits
    )
    assert float(value) == pytest.approx(10 * math.log(10))
    assert not grad.any()


def test_wrongly_classified_images_have_no_margin_term(backend):
    logits, _ = case((6, 3, 5))
    wrong = (torch.softmax(16 * logits, 2).mean(1).argmax(1) + 1) % 5
    options: dict[str, Any] = {"sigma": 0.5, "gamma": 8.0}
    assert torch.equal(
        drf_fast.macer_loss(logits, wrong, lam=12.0, **options),
        drf_fast.macer_loss(logits, wrong, lam=0.0, **options),
    )


def one_image(xi: float) -> torch.Tensor:
    """(1, 1, 2) logits with beta = 16 and Phi^-1(p1) - Phi^-1(p2) = xi: p1 = Phi(xi / 2)."""
    gap = scipy.stats.norm.logcdf(xi / 2) - scipy.stats.norm.logsf(xi / 2)
    return torch.tensor([[[gap / 16, 0.0]]], dtype=torch.float64)


@pytest.mark.parametrize("xi", [0.5, 4.0, 7.9999, 8.0001, 12.0, 18.0])
def test_the_hinge_closes_where_xi_exceeds_gamma(backend, xi):
    logits, target = one_image(xi), torch.tensor([0])
    margin, slope = with_gradient(
        lambda z: (
            drf_fast.macer_loss(z, target, sigma=0.5, lam=4.0)
            - drf_fast.macer_loss(z, target, sigma=0.5, lam=0.0)
        ),
        logits,
    )
    assert float(margin) == pytest.approx(max(0.0, 8.0 - xi), abs=1e-9)
    assert bool(slope.any()) == (xi < 8)


@pytest.mark.parametrize("xi", [12.0, 18.0, 40.0])
def test_a_wide_hinge_keeps_its_digits_where_p1_is_1_to_double_precision(backend, xi):
    # 1 - p1 is summed from the other classes; Phi^-1(1 - 1e-19) is otherwise infinite.
    logits, target = one_image(xi), torch.tensor([0])
    margin, slope = with_gradient(
        lambda z: (
            drf_fast.macer_loss(z, target, sigma=0.5, lam=4.0, gamma=50.0)
            - drf_fast.macer_loss(z, target, sigma=0.5, lam=0.0)
        ),
        logits,
    )
    assert float(margin) == pytest.approx(50.0 - xi, rel=1e-9)
    # d xi/d gap for two classes: 2 p1 p2 / phi(xi / 2), times beta.
    p = scipy.stats.norm.cdf(xi / 2), scipy.stats.norm.sf(xi / 2)
    expected = -32 * p[0] * np.exp(np.log(p[1]) - scipy.stats.norm.logpdf(xi / 2))
    assert slope.flatten().tolist() == pytest.approx([expected, -expected], rel=1e-6)


def test_an_infinite_xi_has_no_margin_term_and_no_nan(backend):
    logits = torch.tensor([[[9e4, 0.0, -math.inf], [9e4, 0.0, -math.inf]]])
    value, grad = with_gradient(
        lambda z: drf_fast.macer_loss(z, torch.tensor([0]), sigma=0.5, lam=4.0), logits
    )
    assert abs(float(value)) < 1e-6 and not grad.any()


def test_minus_infinity_excludes_a_class(backend):
    logits, target = case((8, 3, 6))
    target = target.clamp(max=4)
    masked = logits.clone()
    masked[:, :, 5] = -math.inf
    value, grad = with_gradient(lambda z: drf_fast.macer_loss(z, target, **PARAMETERS), masked)
    expected, expected_grad = with_gradient(
        lambda z: plain(z, target, **PARAMETERS), logits[..., :5]
    )
    assert hinges(logits[..., :5], target) > 1
    assert_close(value, expected, 1e-11)
    assert_gradients_close(grad[..., :5], expected_grad, 1e-11)
    assert not grad[..., 5].any()


def test_parameters_may_be_tensors(backend):
    logits, target = case((4, 3, 5))
    tensors: dict[str, Any] = {name: torch.tensor(value) for name, value in PARAMETERS.items()}
    assert torch.equal(
        drf_fast.macer_loss(logits, target, **tensors),
        drf_fast.macer_loss(logits, target, **PARAMETERS),
    )


def test_gradcheck(backend):
    logits, target = case((4, 3, 5), scale=0.1)
    assert hinges(logits, target) > 1
    torch.autograd.gradcheck(
        lambda z: drf_fast.macer_loss(z, target, **PARAMETERS),
        (logits.requires_grad_(),),
        fast_mode=backend == "triton",  # a call in the interpreter is slow
    )


def test_a_request_for_a_second_derivative_raises(backend):
    logits, target = case((2, 3, 4))
    loss = drf_fast.macer_loss(logits.requires_grad_(), target, sigma=0.5, lam=1.0)
    with pytest.raises(RuntimeError, match="can be differentiated once, got create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_the_module_is_the_function(backend):
    logits, target = case((4, 3, 5))
    module = drf_fast.MacerLoss(3, **PARAMETERS, sample_dim=0)
    rows = logits.transpose(0, 1).reshape(12, 5)
    expected = drf_fast.macer_loss(rows, target, 3, **PARAMETERS, sample_dim=0)
    assert torch.equal(module(rows, target), expected)
