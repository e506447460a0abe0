"""smooth_ce's kernel: its exponential, and the digits of small losses."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from loss_cases import HARDWARE

from drf_fast.kernels.launch import launch
from drf_fast.kernels.rows import exp_, log1p_
from drf_fast.kernels.smooth_ce import smooth_ce

NUMBERS = 2**17
# The interpreter is fastest with one program; a compiler unrolls a tile within each thread.
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


U = 2.0**-24  # relative error of one rounding to float32, at most
# Error of a float32 logarithm in units in the last place: one on hardware, by CUDA's tables; the
# plain interpreter uses NumPy's, which allows four for speed.
LOG_ULPS = 1 if HARDWARE else 4


def test_exp_is_within_an_ulp_down_to_the_smallest_normal_number():
    """1.7 u, which is less than a unit in the last place: 2 u at its least.

    x - n log 2: the first difference is exact, the second rounds a number below 0.35, u / 4. The
    last sum rounds a number within a factor sqrt(2) of 1, u; the one before, times r / e^r, adds
    0.25 u, earlier ones 0.07 u; the errors of the polynomial, 3.1e-9, and of log 2 with 35 bits,
    1.6e-9, are 0.05 u and 0.03 u. The plain interpreter also rounds products, which adds 0.45 u.
    """
    x = -torch.linspace(0, 87.3, 8 * NUMBERS)
    got = apply(exp_kernel, x).double()
    bound = 1.7 if HARDWARE else 2.15
    assert float((got / x.double().exp() - 1).abs().max()) <= bound * U
    assert float(got[0]) == 1.0


def test_exp_of_what_is_too_small_is_zero_and_of_nan_is_nan():
    x = torch.full((NUMBERS,), -math.inf)
    x[:5] = torch.tensor([-1e4, -3e38, -88.1, math.nan, -87.6])
    got = apply(exp_kernel, x)
    assert got[:3].tolist() == [0.0, 0.0, 0.0] and bool(got[3].isnan()) and not got[5:].any()
    assert 0.0 <= float(got[4]) < torch.finfo(torch.float32).smallest_normal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log1p_keeps_the_digits_of_small_arguments(dtype):
    """Each number within the error bound of its own steps, all within 6.5 u: see ``log1p_``.

    A logarithm with an error of more than a unit in the last place adds up to 4 u for each more.
    """
    x = torch.logspace(-30, 5, NUMBERS // 2, dtype=torch.float64)
    x = torch.cat([x, -torch.logspace(-30, -0.001, NUMBERS // 2, dtype=torch.float64)]).to(dtype)
    u = 1.0 + x
    got, x, u, c = (
        value.numpy().astype(np.longdouble)
        for value in (apply(log1p_kernel, x), x, u, x - (u - 1.0))
    )
    log, true, left = np.log(u), np.log1p(x), c / u
    unit, ulps = (U, LOG_ULPS) if dtype == torch.float32 else (2.0**-53, 1)
    last_place = 2 * unit * np.exp2(np.floor(np.log2(np.where(log == 0, 1, np.abs(log)))))
    allowed = np.where(log == 0, 0, ulps * last_place) + unit * (np.abs(left) + np.abs(true))
    error = np.abs(got - true)
    assert (error <= 1.0001 * (allowed + left**2 / 2)).all()
    assert (error <= (2.5 + 4 * ulps) * unit * np.abs(true)).all()


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
    """Both within 3.25 u of log(1 + e^-x) = 0.693, with e = e^-x and S = 1 + e near x = 0.

    Relative errors: e, u / 2; S, u / 4 from e and u / 2 of its own rounding; 1 - F^y, a quotient
    by S, at most 1.25 u with its rounding, hence 1.25 u in its logarithm, whose last place is u:
    2.25 u of 0.693. Or log S, 0.75 u and its last place, u, and u / 2 for x - log S: 2.25 u again.
    (A logarithm with an error of more units in the last place adds them.)
    """
    # 1 - F^y on both sides of 1/2, one unit in the last place after the other.
    x = torch.arange(-40, 41) * 2.0**-23
    logits = torch.stack([x, torch.zeros_like(x)], 1).unsqueeze(1)
    loss, _ = smooth_ce(logits, torch.zeros(len(x), dtype=torch.int64), "none", False)
    expected = torch.log1p((-x.double()).exp())
    assert float((loss.double() / expected - 1).abs().max()) <= (2.25 + LOG_ULPS - 1) / 0.693 * U
