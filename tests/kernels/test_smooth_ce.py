"""smooth_ce's kernel: its exponential, and the digits of small losses."""

from __future__ import annotations

import math
import os

import pytest
import torch
import triton
import triton.language as tl

from drf_fast.kernels.launch import launch
from drf_fast.kernels.rows import exp_, log1p_
from drf_fast.kernels.smooth_ce import smooth_ce

NUMBERS = 2**17
# The interpreter is fastest with one program; a compiler unrolls a program over its threads.
BLOCK = NUMBERS if os.environ.get("TRITON_INTERPRET") == "1" else 2**10


@triton.jit
def exp_kernel(x, out, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, exp_(tl.load(x + place)))


@triton.jit
def log1p_kernel(x, out, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, log1p_(tl.load(x + place)))


def apply(kernel, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    launch(kernel, len(x) // BLOCK, x, out, BLOCK=BLOCK)
    return out


def test_exp_is_within_an_ulp_down_to_the_smallest_normal_number():
    x = -torch.linspace(0, 87.3, 8 * NUMBERS)
    got = apply(exp_kernel, x).double()
    assert float((got / x.double().exp() - 1).abs().max()) < 1.2e-7
    assert float(got[0]) == 1.0


def test_exp_of_what_is_too_small_is_zero_and_of_nan_is_nan():
    x = torch.full((NUMBERS,), -math.inf)
    x[:5] = torch.tensor([-1e4, -3e38, -88.1, math.nan, -87.6])
    got = apply(exp_kernel, x)
    assert got[:3].tolist() == [0.0, 0.0, 0.0] and bool(got[3].isnan()) and not got[5:].any()
    assert 0.0 <= float(got[4]) < 1.2e-38


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_log1p_keeps_the_digits_of_small_arguments(dtype, tolerance):
    x = torch.logspace(-30, 5, NUMBERS // 2, dtype=torch.float64)
    x = torch.cat([x, -torch.logspace(-30, -0.31, NUMBERS // 2, dtype=torch.float64)]).to(dtype)
    got = apply(log1p_kernel, x).double()
    assert float((got / x.double().log1p() - 1).abs().max()) < tolerance


@pytest.mark.parametrize("gap", [1e-3, 1.0, 10.0, 16.0, 20.0, 40.0, 80.0])
def test_a_confident_image_keeps_the_digits_of_its_loss_and_its_gradient(gap):
    # The loss is 1.8e-35 for the widest gap: 1 - F^y, which 1 - 1 / (1 + e) in float32 is not.
    logits = torch.tensor([[[gap, 0.0], [gap + 0.5, 0.0]]])
    loss, grad = smooth_ce(logits, torch.tensor([0]), "none", True)
    missing = torch.sigmoid(-(logits[0, :, 0] - logits[0, :, 1]).double())
    expected = -torch.log1p(-missing.mean())
    assert float(loss) == pytest.approx(float(expected), rel=1e-6, abs=0)
    weight = (1 - missing) / (1 - missing).sum()
    expected_grad = weight * missing
    assert grad[0, :, 1].tolist() == pytest.approx(expected_grad.tolist(), rel=1e-6, abs=0)
    assert torch.equal(grad[0, :, 0], -grad[0, :, 1])


def test_the_two_forms_of_the_loss_meet_where_half_of_it_is_missing():
    # 1 - F^y on both sides of 1/2, one unit in the last place after the other.
    x = torch.arange(-40, 41) * 2.0**-23
    logits = torch.stack([x, torch.zeros_like(x)], 1).unsqueeze(1)
    loss, _ = smooth_ce(logits, torch.zeros(len(x), dtype=torch.int64), "none", False)
    expected = torch.log1p((-x.double()).exp())
    assert float((loss.double() / expected - 1).abs().max()) < 2e-7
