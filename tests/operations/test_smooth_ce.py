"""smooth_ce against the plain formula in float64: values, gradients, extremes, identities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from formulas import assert_close, assert_gradients_close, case, with_gradient
from loss_cases import same_but_for_the_order_of_sums

import drf_fast

OPERATIONS = ("smooth_ce",)
SHAPES = [(4, m, K) for m in (1, 3, 16) for K in (2, 7, 10, 1000)]
HALVES = [torch.bfloat16, torch.float16]


def plain(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,): -log((1/m) sum_i softmax(logits_i)[y]) of float64 (B, m, K), as it is written."""
    mean = torch.softmax(logits, dim=2).mean(dim=1)
    return -torch.log(mean[torch.arange(len(target)), target])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_within_1e_6_of_the_formula(backend, shape, reduction):
    logits, target = case(shape)
    single = logits.float()

    def expected(z):
        loss = plain(z, target)
        return loss if reduction == "none" else getattr(loss, reduction)()

    value, grad = with_gradient(
        lambda z: drf_fast.smooth_ce(z, target, reduction=reduction), single
    )
    true_value, true_grad = with_gradient(expected, single.double())
    assert value.dtype == grad.dtype == torch.float32 and value.shape == true_value.shape
    assert_close(value, true_value, 1e-6)
    assert_gradients_close(grad, true_grad, 1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_computed_in_float64(backend, shape):
    logits, target = case(shape)
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), logits)
    true_value, true_grad = with_gradient(lambda z: plain(z, target).mean(), logits)
    assert value.dtype == grad.dtype == torch.float64
    assert_close(value, true_value, 1e-14)
    assert_gradients_close(grad, true_grad, 1e-13)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(4, 1, 2), (4, 3, 10), (2, 16, 1000)], ids=str)
def test_half_precision_loses_only_the_rounding_of_its_gradient(backend, shape, dtype):
    logits, target = case(shape)
    half = logits.to(dtype)
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target, reduction="sum"), half)
    true_value, true_grad = with_gradient(lambda z: plain(z, target).sum(), half.double())
    assert value.dtype == torch.float32 and grad.dtype == dtype
    assert_close(value, true_value, 1e-6)
    info = torch.finfo(dtype)
    error = (grad.double() - true_grad).abs()
    rounding = 0.5 * info.eps * true_grad.abs() + 0.5 * info.smallest_normal * info.eps
    assert bool((error <= 1.001 * rounding + 1e-6 * true_grad.abs().max()).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_upstream_gradient_beyond_the_range_of_half_precision_is_not_rounded_to_it(
    backend, dtype
):
    # A gradient scaler starts at 2^16, which float16 does not hold.
    logits, target = case((64, 2, 10))
    half = logits.to(dtype)
    _, expected = with_gradient(lambda z: plain(z, target).mean() * 65536, half.double())
    _, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target) * 65536, half)
    assert bool(grad.isfinite().all())
    assert_gradients_close(grad, expected, 2.5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_every_layout_of_the_same_logits_gives_the_same_numbers(backend, dtype):
    logits, target = case((5, 3, 7))
    logits = logits.to(dtype)
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), logits)
    sample_major = logits.transpose(0, 1).contiguous()
    layouts = {
        "2-D": (logits.reshape(15, 7), {"num_samples": 3}, lambda g: g.reshape(5, 3, 7)),
        "3-D with num_samples": (logits, {"num_samples": 3}, lambda g: g),
        "sample-major 3-D": (sample_major, {"sample_dim": 0}, lambda g: g.transpose(0, 1)),
        "sample-major 2-D": (
            sample_major.reshape(15, 7),
            {"num_samples": 3, "sample_dim": 0},
            lambda g: g.reshape(3, 5, 7).transpose(0, 1),
        ),
        "strided": (logits.repeat_interleave(2, 2)[..., ::2], {}, lambda g: g),
    }
    for name, (z, options, back) in layouts.items():
        other, other_grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target, **options), z)  # noqa: B023
        assert torch.equal(other, value), name
        assert torch.equal(back(other_grad), grad), name


def test_one_sample_is_cross_entropy(backend):
    logits, target = case((6, 1, 10))
    single = logits.float()
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), single)
    expected, expected_grad = with_gradient(
        lambda z: F.cross_entropy(z[:, 0], target), single.double()
    )
    assert_close(value, expected, 1e-6)
    assert_gradients_close(grad, expected_grad, 1e-6)


def test_equal_samples_are_cross_entropy(backend):
    logits, target = case((6, 1, 10))
    value = drf_fast.smooth_ce(logits.expand(6, 9, 10), target, reduction="none")
    assert_close(value, F.cross_entropy(logits[:, 0], target, reduction="none"), 1e-14)


def test_the_gradient_of_each_sample_sums_to_zero_over_classes(backend):
    logits, target = case((4, 5, 10))
    _, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), logits)
    assert float(grad.sum(2).abs().max()) < 1e-15


@pytest.mark.parametrize("scale", [1e3, 1e30, 3e38])
def test_huge_logits_underflow_no_probability_to_a_dead_gradient(backend, scale):
    # Every F_i^y underflows, so the plain formula would be -log 0; the loss is the nearest gap.
    logits = torch.tensor([[[0.0, scale, -scale], [0.0, scale / 2, 0.0]]])
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, torch.tensor([0])), logits)
    assert float(value) == pytest.approx(scale / 2 + math.log(2), rel=1e-6)
    assert torch.allclose(grad, torch.tensor([[[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]]))


def test_half_precision_logits_at_the_end_of_their_range(backend):
    logits = torch.tensor([[[65504.0, -65504.0], [65504.0, 65504.0]]], dtype=torch.float16)
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, torch.tensor([1])), logits)
    assert float(value) == pytest.approx(math.log(4), rel=1e-6)
    assert torch.allclose(grad.float(), torch.tensor([[[0.0, 0.0], [0.5, -0.5]]]))


def test_minus_infinity_excludes_a_class(backend):
    logits, target = case((4, 3, 6))
    target = target.clamp(max=4)
    masked = logits.clone()
    masked[:, :, 5] = -math.inf
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), masked.float())
    expected, expected_grad = with_gradient(
        lambda z: plain(z, target).mean(), logits[..., :5].float().double()
    )
    assert_close(value, expected, 1e-6)
    assert_gradients_close(grad[..., :5], expected_grad, 1e-6)
    assert not grad[..., 5].any()


def test_a_sample_that_excludes_the_label_has_no_weight(backend):
    logits, target = case((1, 3, 4))
    logits[0, 1, target] = -math.inf
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target), logits)
    assert_close(value, plain(logits, target).mean(), 1e-14)
    assert not grad[0, 1].any() and grad[0, 0].any()


def test_when_every_sample_excludes_the_label_the_loss_is_infinite_and_samples_weigh_alike(backend):
    logits, _ = case((2, 4, 5))
    target = torch.tensor([1, 2])
    logits[0, :, 1] = -math.inf
    value, grad = with_gradient(lambda z: drf_fast.smooth_ce(z, target, reduction="none"), logits)
    assert value[0] == math.inf and value[1].isfinite()
    one_hot = F.one_hot(target[:1], 5)
    assert_gradients_close(grad[0], (torch.softmax(logits[0], 1) - one_hot) / 4, 1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend, reduction):
    logits, target = case((3, 4, 5), scale=1.0)
    torch.autograd.gradcheck(
        lambda z: drf_fast.smooth_ce(z, target, reduction=reduction),
        (logits.requires_grad_(),),
        fast_mode=backend == "triton",  # a call in the interpreter is slow
    )


def test_a_request_for_a_second_derivative_raises(backend):
    logits, target = case((2, 3, 4))
    logits.requires_grad_()
    loss = drf_fast.smooth_ce(logits, target)
    with pytest.raises(RuntimeError, match="can be differentiated once, got create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_the_loss_leaves_its_arguments_unchanged(backend):
    logits, target = case((2, 3, 4))
    before = logits.clone(), target.clone()
    with_gradient(lambda z: drf_fast.smooth_ce(z, target), logits)
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


def test_without_grad_the_loss_is_the_same_and_has_no_graph(backend):
    logits, target = case((2, 3, 4))
    with torch.no_grad():
        value = drf_fast.smooth_ce(logits.requires_grad_(), target)
    assert not value.requires_grad
    # On Triton another kernel, compiled without the gradient.
    expected = drf_fast.smooth_ce(logits, target).detach()
    assert same_but_for_the_order_of_sums("smooth_ce", logits.detach(), [value], [expected])


def test_the_module_is_the_function(backend):
    logits, target = case((4, 3, 5))
    module = drf_fast.SmoothCELoss(3, sample_dim=0, reduction="sum")
    rows = logits.transpose(0, 1).reshape(12, 5)
    expected = drf_fast.smooth_ce(rows, target, 3, sample_dim=0, reduction="sum")
    assert torch.equal(module(rows, target), expected)
