"""adversary_step against the steps of PAPER's section 2 in float64, its identities and limits."""

from __future__ import annotations

import itertools
from typing import Any

import plain
import pytest
import torch

import drf_fast

OPERATIONS = ("adversary_step", "noisy_repeat")
NORMS = ("image", "batch", "none")
B, M, SHAPE = 6, 3, (2, 3, 4)
NOISE: dict[str, Any] = {"sigma": 0.25, "seed": 11, "image_ids": torch.tensor([5, 0, 9, 2, 3, 8])}
EPSILON, STEP = 0.6, 0.4


def balls() -> dict[str, Any]:
    """Every ball, with prices that bind for some images and not for others."""
    table: dict[str, Any] = {"none": None, "hard": drf_fast.HardBall(EPSILON)}
    for form, lam in itertools.product(("prox", "excess", "shrink"), (0.0, 0.3, 1.0, 1.7)):
        table[f"{form}, lambda={lam}"] = drf_fast.SoftBall(EPSILON, lambda0=lam, form=form)
    for lam, tau in itertools.product((0.0, 0.3, 1.7), (None, 0.3, 2.0)):
        ball = drf_fast.SoftBall(EPSILON, lambda0=lam, form="udr", tau=tau)
        table[f"udr, lambda={lam}, tau={tau}"] = ball
    return table


def expected_step(
    grad: torch.Tensor, x: torch.Tensor, x_adv: torch.Tensor, *how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_adv and the distances, image by image in float64, as the method is written."""
    summed = grad.double().unflatten(0, (B, M)).sum(1)
    moved = plain.step(summed, x.double(), x_adv.double(), *how)
    return moved, (moved - x.double()).flatten(1).norm(dim=1)


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """grad, x, x_adv: gradients of very different size, distances on both sides of epsilon."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(B, *SHAPE, generator=generator, dtype=torch.float64)
    offset = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    reach = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.6, 0.9]).reshape(B, 1, 1, 1)
    offset = reach * offset / offset.flatten(1).norm(dim=1).reshape(B, 1, 1, 1)
    grad = torch.randn(B * M, *SHAPE, generator=generator, dtype=torch.float64)
    size = torch.tensor([1.0, 1e-3, 0.3, 2.0, 0.0, 1.0]).repeat_interleave(M)
    grad = grad * size.reshape(-1, 1, 1, 1)
    return grad.to(dtype), x.to(dtype), (x + offset).clamp(0, 1).to(dtype)


def step(
    grad: torch.Tensor, x: torch.Tensor, x_adv: torch.Tensor, ball: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drf_fast.adversary_step(
        grad, x, x_adv, **{"step_size": STEP, "ball": ball, **NOISE, **options}
    )


@pytest.mark.parametrize("clamp", [(0, 1), (-0.1, 0.8), None], ids=str)
@pytest.mark.parametrize("grad_norm", NORMS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_every_ball_is_the_formula(backend, dtype, tolerance, grad_norm, clamp):
    grad, x, x_adv = case(dtype)
    for name, ball in balls().items():
        got, _, distance = step(grad, x, x_adv, ball, grad_norm=grad_norm, clamp=clamp)
        expected, expected_distance = expected_step(grad, x, x_adv, ball, STEP, grad_norm, clamp)
        assert got.dtype == distance.dtype == dtype
        assert float((got.double() - expected).abs().max()) < tolerance, name
        off = (distance.double() - expected_distance).abs()
        assert float(off.max()) < 4 * tolerance, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_one_rounding_of_the_formula(backend, dtype):
    grad, x, x_adv = case(dtype)
    for name, ball in balls().items():
        got, noisy, distance = step(grad, x, x_adv, ball)
        expected, _ = expected_step(grad, x, x_adv, ball, STEP)
        assert got.dtype == noisy.dtype == dtype and distance.dtype == torch.float32
        rounding = 0.5 * torch.finfo(dtype).eps
        assert float((got.double() - expected).abs().max()) < rounding + 5e-7, name
        # The distance is that of the images which are returned, not of those before rounding.
        true = (got.double() - x.double()).flatten(1).norm(dim=1)
        assert torch.allclose(distance.double(), true, rtol=1e-6, atol=0), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_noisy_batch_is_noisy_repeat_of_the_result_bit_for_bit(backend, dtype):
    grad, x, x_adv = case(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b, c = (t.contiguous(memory_format=layout) for t in (grad, x, x_adv))
        got, noisy, _ = step(a, b, c, drf_fast.SoftBall(EPSILON, lambda0=0.3))
        expected = drf_fast.noisy_repeat(got, num_samples=M, **NOISE)
        assert torch.equal(noisy, expected) and noisy.stride() == expected.stride()
        assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("grad_norm", NORMS)
def test_excess_at_lambda_1_is_the_hard_ball(backend, grad_norm):
    """Bit for bit, except that a compiler may sum in another order in another kernel."""
    for dtype in (torch.float32, torch.float64):
        # Sums of 24 squares in any order, a root and a quotient, on numbers up to 1.
        tolerance = 16 * torch.finfo(dtype).eps if backend == "triton" else 0.0
        grad, x, x_adv = case(dtype)
        hard = step(grad, x, x_adv, drf_fast.HardBall(EPSILON), grad_norm=grad_norm)
        for lam in (1.0, 5.0):
            soft = drf_fast.SoftBall(EPSILON, lambda0=lam, form="excess")
            for a, b in zip(hard, step(grad, x, x_adv, soft, grad_norm=grad_norm), strict=True):
                torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("tau", [None, STEP, torch.tensor(STEP)], ids=str)
def test_udr_at_lambda_alpha_over_tau_1_is_the_hard_ball_where_no_box_is(backend, tau):
    grad, x, x_adv = case(torch.float32)
    hard = step(grad, x, x_adv, drf_fast.HardBall(EPSILON), clamp=None)
    soft = drf_fast.SoftBall(EPSILON, lambda0=1.0, form="udr", tau=tau)
    for a, b in zip(hard, step(grad, x, x_adv, soft, clamp=None), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)


def test_udr_has_no_cap_and_goes_to_the_other_side(backend):
    x = torch.zeros(1, 1, 1, 1)
    grad = torch.ones(M, 1, 1, 1)
    ball = drf_fast.SoftBall(0.1, lambda0=3.0, form="udr")
    noise = {"sigma": 0.25, "seed": 1, "image_ids": torch.tensor([0])}
    got, _, distance = drf_fast.adversary_step(
        grad, x, x, step_size=0.4, ball=ball, clamp=None, **noise
    )
    # 0.4 - 3 (0.4 - 0.1)
    assert float(got) == pytest.approx(-0.5, abs=1e-6) and float(distance) == -float(got)


@pytest.mark.parametrize("form", ["prox", "excess", "shrink", "udr"])
def test_lambda_0_is_no_ball_bit_for_bit(backend, form):
    grad, x, x_adv = case(torch.float32)
    free = drf_fast.SoftBall(EPSILON, lambda0=0.0, form=form)
    for a, b in zip(step(grad, x, x_adv, free), step(grad, x, x_adv, None), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["prox", "shrink"])
@pytest.mark.parametrize("lam", [1.0, 3.0])
def test_lambda_from_1_on_lets_no_perturbation_start(backend, form, lam):
    grad, x, _ = case(torch.float32)
    got, _, distance = step(grad, x, x, drf_fast.SoftBall(EPSILON, lambda0=lam, form=form))
    # A step of the length alpha is shortened by alpha: nothing is left but its own rounding.
    assert float(distance.max()) < 1e-6 and torch.allclose(got, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grad_norm", NORMS)
def test_a_zero_gradient_moves_nothing(backend, grad_norm):
    _, x, _ = case(torch.float32)
    for name, ball in balls().items():
        got, noisy, distance = step(torch.zeros(B * M, *SHAPE), x, x, ball, grad_norm=grad_norm)
        assert torch.equal(got, x) and not distance.any(), name
        assert bool(noisy.isfinite().all()), name


@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e-20, 1e20, 1e37])
def test_only_the_direction_of_a_gradient_counts_however_small_or_large(backend, size):
    grad, x, _ = case(torch.float32)
    grad = torch.zeros_like(grad)
    grad[:, 1, 2, 3] = size  # a single pixel moves by the whole step, the zeros stay
    got, _, distance = step(grad, x, x, None, clamp=None)
    expected = x.clone()
    expected[:, 1, 2, 3] += STEP
    assert torch.allclose(got, expected, rtol=0, atol=2e-7)
    assert torch.allclose(distance, torch.tensor(STEP), rtol=1e-6)


def test_gradients_of_opposite_copies_cancel(backend):
    _, x, _ = case(torch.float32)
    half = torch.rand(B, *SHAPE)
    grad = torch.stack([half, -half, torch.zeros_like(half)], dim=1).flatten(0, 1)
    got, _, _ = step(grad, x, x, None)
    assert torch.equal(got, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_constraints_of_the_hard_ball_hold_after_every_step(backend, dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(B, *SHAPE, generator=generator).to(dtype).round(decimals=1)
    x_adv = x
    for _ in range(8):
        grad = torch.randn(B * M, *SHAPE, generator=generator).to(dtype)
        x_adv, _, distance = step(grad, x, x_adv, drf_fast.HardBall(EPSILON))
        true = (x_adv - x).double().flatten(1).norm(dim=1)
        assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
        assert float(true.max()) <= EPSILON * (1 + 4 * torch.finfo(dtype).eps)
        assert torch.allclose(distance.double(), true, rtol=2 * torch.finfo(dtype).eps)
    assert float(true.max()) > 0.99 * EPSILON  # the ball was reached


def test_changing_parameters_may_be_tensors(backend):
    grad, x, x_adv = case(torch.float32)
    expected = step(grad, x, x_adv, drf_fast.HardBall(EPSILON))
    got = step(
        grad,
        x,
        x_adv,
        drf_fast.HardBall(torch.tensor(EPSILON, dtype=torch.float64)),
        step_size=torch.tensor(STEP, dtype=torch.float64),
        sigma=torch.tensor(NOISE["sigma"]),
        seed=torch.tensor(NOISE["seed"]),
    )
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_arguments_stay_unchanged_and_results_have_no_graph(backend):
    grad, x, x_adv = (t.requires_grad_() for t in case(torch.float32))
    before = [t.detach().clone() for t in (grad, x, x_adv)]
    results = step(grad, x, x_adv, drf_fast.HardBall(EPSILON))
    assert not any(t.requires_grad for t in results)
    for t, old in zip((grad, x, x_adv), before, strict=True):
        assert torch.equal(t, old)
