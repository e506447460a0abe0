"""consistency_loss against the plain formula in float64: values, gradients, identities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formulas import assert_close, assert_gradients_close, case, with_gradient
from loss_cases import error_of_slopes

import drf_fast

OPERATIONS = ("consistency_loss",)
SHAPES = [(4, m, K) for m in (1, 3, 16) for K in (2, 7, 10, 1000)]
HALVES = [torch.bfloat16, torch.float16]


def plain(logits: torch.Tensor, target: torch.Tensor, lam: float, eta: float) -> torch.Tensor:
    """(B,): mean_i CE(F_i, y) + lam mean_i KL(Fbar || F_i) + eta H(Fbar) of float64 (B, m, K)."""
    p = torch.softmax(logits, dim=2)
    mean = p.mean(dim=1, keepdim=True)
    ce = -p[torch.arange(len(target)), :, target].log().mean(1)
    kl = (mean * (mean.log() - p.log())).sum(2).mean(1)
    entropy = -(mean * mean.log()).sum(2).squeeze(1)
    return ce + lam * kl + eta * entropy


@pytest.mark.parametrize("lam, eta", [(10.0, 0.5), (1.0, 0.5), (0.0, 2.0), (20.0, 0.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_within_1e_6_of_the_formula(backend, shape, lam, eta):
    logits, target = case(shape)
    single = logits.float()
    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, target, lam=lam, eta=eta), single
    )
    true_value, true_grad = with_gradient(
        lambda z: plain(z, target, lam, eta).mean(), single.double()
    )
    assert value.dtype == grad.dtype == torch.float32
    slope = error_of_slopes(single, lam, eta)  # 0 but on hardware, or what computes like it
    assert_close(value, true_value, 1e-6, slope)
    # F = exp(log F) inherits the rounding of log F: 5e-7 where log F is below -8. The slope and its
    # mean over the classes are multiplied by F / (B m).
    slopes = 2 * slope * single.double().softmax(2) / math.prod(shape[:2])
    assert_gradients_close(grad, true_grad, 2e-6, slopes)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_computed_in_float64(backend, shape, reduction):
    logits, target = case(shape)

    def expected(z):
        loss = plain(z, target, 10.0, 0.5)
        return loss if reduction == "none" else getattr(loss, reduction)()

    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, target, lam=10.0, reduction=reduction), logits
    )
    true_value, true_grad = with_gradient(expected, logits)
    assert value.dtype == grad.dtype == torch.float64 and value.shape == true_value.shape
    assert_close(value, true_value, 1e-13)
    assert_gradients_close(grad, true_grad, 1e-12)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(4, 1, 2), (4, 3, 10), (2, 16, 1000)], ids=str)
def test_half_precision_loses_only_the_rounding_of_its_gradient(backend, shape, dtype):
    logits, target = case(shape)
    half = logits.to(dtype)
    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, target, lam=5.0, reduction="sum"), half
    )
    true_value, true_grad = with_gradient(lambda z: plain(z, target, 5.0, 0.5).sum(), half.double())
    assert value.dtype == torch.float32 and grad.dtype == dtype
    assert_close(value, true_value, 1e-6)
    info = torch.finfo(dtype)
    error = (grad.double() - true_grad).abs()
    rounding = 0.5 * info.eps * true_grad.abs() + 0.5 * info.smallest_normal * info.eps
    assert bool((error <= 1.001 * rounding + 2e-6 * true_grad.abs().max()).all())


def test_every_layout_of_the_same_logits_gives_the_same_numbers(backend):
    logits, target = case((5, 3, 7))
    value, grad = with_gradient(lambda z: drf_fast.consistency_loss(z, target, lam=2.0), logits)
    sample_major = logits.transpose(0, 1).contiguous()
    layouts: dict[str, tuple[torch.Tensor, dict[str, Any], Any]] = {
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
            lambda z: drf_fast.consistency_loss(z, target, lam=2.0, **options),  # noqa: B023
            z,
        )
        assert torch.equal(other, value), name
        assert torch.equal(back(other_grad), grad), name


def test_without_weights_it_is_the_mean_cross_entropy_of_the_samples(backend):
    logits, target = case((6, 4, 10))
    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, target, lam=0.0, eta=0.0), logits
    )
    expected, expected_grad = with_gradient(
        lambda z: F.cross_entropy(z.reshape(24, 10), target.repeat_interleave(4)), logits
    )
    assert_close(value, expected, 1e-14)
    assert_gradients_close(grad, expected_grad, 1e-13)


def test_equal_samples_have_no_divergence(backend):
    logits, target = case((6, 1, 10))
    equal = logits.expand(6, 5, 10)
    with_kl = drf_fast.consistency_loss(equal, target, lam=100.0, eta=0.0)
    assert_close(with_kl, F.cross_entropy(logits[:, 0], target), 1e-12)


def test_weights_may_be_tensors(backend):
    logits, target = case((3, 4, 5))
    expected = drf_fast.consistency_loss(logits, target, lam=3.0, eta=0.25)
    got = drf_fast.consistency_loss(
        logits, target, lam=torch.tensor(3.0), eta=torch.tensor(0.25, dtype=torch.float64)
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("scale", [100.0, 1e4, 1e30])
def test_far_apart_logits_give_finite_values_and_gradients(backend, scale):
    # Probabilities underflow, their logarithms do not: KL(Fbar || F_i) is about scale / 2.
    logits = torch.tensor([[[scale, 0.0], [0.0, scale]]])
    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, torch.tensor([0]), lam=2.0), logits
    )
    kl, entropy = scale / 2 - math.log(2), math.log(2)
    assert float(value) == pytest.approx(scale / 2 + 2 * kl + 0.5 * entropy, rel=1e-6)
    assert bool(grad.isfinite().all())


def test_a_class_that_every_sample_excludes_plays_no_part(backend):
    logits, target = case((4, 3, 6))
    target = target.clamp(max=4)
    masked = logits.clone()
    masked[:, :, 5] = -math.inf
    value, grad = with_gradient(lambda z: drf_fast.consistency_loss(z, target, lam=2.0), masked)
    expected, expected_grad = with_gradient(
        lambda z: plain(z, target, 2.0, 0.5).mean(), logits[..., :5]
    )
    assert_close(value, expected, 1e-14)
    assert_gradients_close(grad[..., :5], expected_grad, 1e-13)
    assert not grad[..., 5].any()


@pytest.mark.parametrize("gap", [0.0, 200.0, 2000.0])
def test_a_class_that_one_sample_excludes_makes_the_loss_infinite_but_no_gradient_nan(backend, gap):
    # With a gap the other samples' probability of that class underflows, which changes nothing.
    logits = torch.zeros(1, 3, 4)
    logits[0, :, 3] = -gap
    logits[0, 1, 3] = -math.inf
    value, grad = with_gradient(
        lambda z: drf_fast.consistency_loss(z, torch.tensor([0]), lam=2.0), logits
    )
    assert float(value) == math.inf
    assert bool(grad.isfinite().all())


def test_without_the_divergence_an_excluded_class_is_no_infinity(backend):
    logits, _ = case((1, 3, 4))
    target = torch.tensor([0])
    logits[0, 1, 3] = -math.inf
    value = drf_fast.consistency_loss(logits, target, lam=0.0, eta=0.0)
    assert_close(value, F.cross_entropy(logits[0], target.expand(3)), 1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend, reduction):
    logits, target = case((3, 4, 5), scale=1.0)
    torch.autograd.gradcheck(
        lambda z: drf_fast.consistency_loss(z, target, lam=3.0, eta=0.7, reduction=reduction),
        (logits.requires_grad_(),),
        fast_mode=backend == "triton",  # a call in the interpreter is slow
    )


def test_a_request_for_a_second_derivative_raises(backend):
    logits, target = case((2, 3, 4))
    loss = drf_fast.consistency_loss(logits.requires_grad_(), target, lam=1.0)
    with pytest.raises(RuntimeError, match="can be differentiated once, got create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_the_module_is_the_function(backend):
    logits, target = case((4, 3, 5))
    module = drf_fast.ConsistencyLoss(3, lam=2.0, eta=0.1, sample_dim=0, reduction="sum")
    rows = logits.transpose(0, 1).reshape(12, 5)
    expected = drf_fast.consistency_loss(
        rows, target, 3, lam=2.0, eta=0.1, sample_dim=0, reduction="sum"
    )
    assert torch.equal(module(rows, target), expected)
