"""macer_loss's kernel: its normal quantile, ties, the two largest entries over class blocks."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import triton
import triton.language as tl
from loss_cases import assert_true, case, kernel

from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import loss_call
from drf_fast.kernels.launch import launch
from drf_fast.kernels.macer_loss import macer_loss
from drf_fast.kernels.quantile import upper_normal_quantile

BLOCK = 2**12


def weights(gamma: float = 8.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """sigma, lam, gamma and beta."""
    sigma, lam, width, beta = torch.tensor([0.5, 12.0, gamma, 16.0], dtype=torch.float64)
    return sigma, lam, width, beta


@triton.jit
def quantile_kernel(q, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, upper_normal_quantile(tl.load(q + place)))


def quantiles(q: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(q)
    launch(quantile_kernel, 1, q, out, BLOCK=BLOCK)
    return out


def test_the_quantile_is_within_3e_14_from_one_half_to_the_smallest_normal_number():
    x = torch.linspace(1e-6, 37.5, BLOCK, dtype=torch.float64)
    with mpmath.workdps(40):
        root = mpmath.sqrt(2)
        tails = [mpmath.erfc(mpmath.mpf(v) / root) / 2 for v in x.tolist()]
        q = torch.tensor([float(tail) for tail in tails], dtype=torch.float64)
        # q is rounded, which moves its quantile by that error over the density.
        moved = [
            float((mpmath.mpf(rounded) - tail) / mpmath.npdf(v))
            for v, rounded, tail in zip(x.tolist(), q.tolist(), tails, strict=True)
        ]
    got = quantiles(q)
    error = (got - (x - torch.tensor(moved, dtype=torch.float64))).abs()
    # Near 1/2 the error of log 2q dominates.
    assert float((error / (x + 0.01)).max()) < 3e-14
    assert bool((got.diff() > 0).all())


def test_the_quantile_of_a_subnormal_number():
    q = torch.full((BLOCK,), 5e-324, dtype=torch.float64)
    assert float(quantiles(q)[0]) == pytest.approx(38.467405617144344, rel=1e-14)


def test_the_quantile_of_one_half_is_zero():
    q = torch.full((BLOCK,), 0.5, dtype=torch.float64)
    q[1] = math.nextafter(0.5, 1.0)  # by rounding
    got = quantiles(q)
    assert float(got.abs().max()) < 1e-15


@pytest.fixture(params=["registers", "blocks"])
def place(request, monkeypatch):
    """Where the logits are kept: blocks have 4 to 16 classes."""
    if request.param == "blocks":
        monkeypatch.setattr(loss_call, "_SHORT_ROWS", 0)
        monkeypatch.setattr(loss_call, "_PASSING_ROWS", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("first", [0, 15, 16, 39])
@pytest.mark.parametrize("second", [1, 14, 17, 38])
def test_the_two_largest_are_found_wherever_they_are(place, dtype, first, second):
    generator = torch.Generator().manual_seed(first)
    logits = torch.randn(1, 2, 40, generator=generator).to(dtype) * 0.02
    logits[:, :, first] += 0.3
    logits[:, :, second] += 0.2
    target = torch.tensor([first])
    value, grad = macer_loss(logits, target, *weights(), True)
    true_value, true_grad = reference.macer_loss(logits.double(), target, *weights(), True)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-11
    assert float(true_value) > 5  # the margin term is active
    assert float(value) == pytest.approx(float(true_value), rel=tolerance)
    error = (grad.double() - true_grad).abs().max()
    assert float(error) <= tolerance * float(true_grad.abs().max())


@pytest.mark.parametrize(
    "tied", [(0, 1), (3, 4), (2, 39), (15, 16), (31, 32), (5, 6, 7), (0, 20, 39)]
)
def test_ties_go_to_the_lower_class(place, tied):
    for label in tied[:2]:
        logits = torch.zeros(1, 3, 40, dtype=torch.float64)
        logits[:, :, list(tied)] = 0.25
        target = torch.tensor([label])
        value, grad = macer_loss(logits, target, *weights(), True)
        true_value, true_grad = reference.macer_loss(logits, target, *weights(), True)
        assert float(value) == pytest.approx(float(true_value), rel=1e-12)
        assert torch.allclose(grad, true_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draw", range(8))  # of simulated errors, in sessions that draw some
def test_two_classes_keep_their_digits(draw, place):
    """An error of 5 u in a row's 1 / sum, as of an approximate quotient, is 25 u in a slope."""
    logits, target = case((3, 3, 2))
    assert_true("macer_loss", logits, target, kernel("macer_loss", logits, target))


@pytest.mark.parametrize("gap", [4.0, 30.0, 38.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_wide_hinge_reaches_where_float32_has_no_probabilities(place, gap, dtype):
    # e^(-16 * 38) is 1e-264; float32 ends at 1e-45. xi is 67 there.
    logits = torch.tensor([[[gap, 0.0, -0.5, -1.0], [gap, 0.5, 0.0, -1.0]]]).to(dtype)
    target = torch.tensor([0])
    value, grad = macer_loss(logits, target, *weights(gamma=70.0), True)
    true_value, true_grad = reference.macer_loss(logits.double(), target, *weights(70.0), True)
    assert float(true_value) > 1
    assert float(value) == pytest.approx(float(true_value), rel=1e-6)
    error = (grad.double() - true_grad).abs().max()
    half = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    assert float(error) <= (1e-6 + half) * float(true_grad.abs().max())


def test_a_xi_that_float64_cannot_hold_has_no_margin_term(place):
    logits = torch.tensor([[[9e4, 0.0, -math.inf], [9e4, 0.0, -math.inf]]])
    value, grad = macer_loss(logits, torch.tensor([0]), *weights(gamma=1e3), True)
    assert abs(float(value)) < 1e-6 and not grad.any()
