"""The kernels of the three losses: against float64, in any shape, order and tile.

test_smooth_ce.py, test_consistency_loss.py and test_macer_loss.py of tests/operations, which run on
these kernels too, test what the losses compute.
"""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from kernel_sessions import SHARE
from loss_cases import (
    DTYPES,
    assert_true,
    call,
    case,
    each_dtype,
    each_loss,
    kernel,
    reduced,
    same_but_for_the_order_of_sums,
    truth,
)

from drf_fast.kernels import loss_call
from drf_fast.kernels.launch import recording


@each_loss
@each_dtype
@pytest.mark.parametrize(
    "shape",
    [(5, 1, 2), (1, 3, 7), (64, 4, 10), (3, 16, 100), (2, 16, 1000), (1, 4, 4097), (1, 3, 10000)],
    ids=str,
)
def test_values_and_gradients_are_within_1e_6_of_float64(name, dtype, shape):
    logits, target = case(shape, dtype)
    assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
@pytest.mark.parametrize(
    "shape, dtype",
    [
        # float64, since the interpreter adds the samples one after the other, a GPU in a tree.
        ((1, 1000, 10), torch.float64),
        ((1, 130, 200), torch.float32),
        ((1, 2, 100_000), torch.float32),
    ],
    ids=str,
)
def test_many_samples_and_many_classes(name, shape, dtype):
    logits, target = case(shape, dtype, scale=0.15)
    assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
@hypothesis.given(
    batch=st.integers(1, 5),
    samples=st.integers(1, 9),
    classes=st.integers(2, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 0.2, 3.0, 30.0]),
    excluded=st.integers(0, 2),
    passing=st.booleans(),
    data=st.data(),
)
@hypothesis.settings(max_examples=60 // SHARE, deadline=None, derandomize=True)
def test_any_shape_is_within_rounding_of_the_float64_reference(
    name, batch, samples, classes, dtype, scale, excluded, passing, data
):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = (torch.randn(batch, samples, classes, generator=generator) * scale).to(dtype)
    for _ in range(excluded):  # a logit of -inf, somewhere
        where = torch.randint(batch * samples * classes, (1,), generator=generator)
        if classes > 2:
            logits.view(-1)[where] = -math.inf
    target = torch.randint(classes, (batch,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        if passing:
            for constant in ("_LONG_ROWS", "_SHORT_ROWS"):
                patch.setattr(loss_call, constant, 0)
            patch.setattr(loss_call, "_PASSING_ROWS", 64)
        value, grad = kernel(name, logits, target)
    true_value, true_grad = truth(name, logits, target)
    assert value.isfinite() == true_value.isfinite() and bool(grad.isfinite().all())
    if true_value.isfinite():
        exact = dtype == torch.float64
        # 34 u: twice the 1e-6 of assert_true, for logits 150 times as large: in a loss of several
        # hundred, z - peak and two logarithms have relative errors of some u each.
        assert float(value) == pytest.approx(float(true_value), rel=2e-6, abs=2e-6)
        # 168 u of a row's weight: a slope lam * gap and a weight e^(log F^y) inherit the error
        # of log F, some 4 u |log F|, and matter while F is not negligible: |log F| up to 40.
        largest = max(1.0 / (batch * samples), float(true_grad.abs().max()))
        tolerance = 1e-11 if exact else 1e-5 + torch.finfo(dtype).eps
        assert float((grad.double() - true_grad).abs().max()) <= tolerance * largest


@each_loss
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_blocks_that_pass_by_give_what_registers_give(name, classes, small_blocks):
    for dtype in DTYPES:
        logits, target = case((3, 3, classes), dtype)
        with recording() as launches:
            kernel(name, logits, target)
        assert launches[0].constants["RESIDENT"] is False
        assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
def test_blocks_of_nothing_but_excluded_classes(name, small_blocks):
    logits, target = case((2, 2, 600))
    logits[:, :, :500] = -math.inf
    logits[:, :, 550:] = -math.inf
    target[:] = torch.tensor([500, 549])
    value, grad = kernel(name, logits, target)
    expected = kernel(name, logits[:, :, 500:550], target - 500)
    # Both are within 1e-6 of the exact value, see assert_true.
    assert float(value) == pytest.approx(float(expected[0]), rel=2e-6)
    largest = float(expected[1].abs().max())
    assert float((grad[:, :, 500:550] - expected[1]).abs().max()) <= 2e-6 * largest
    assert not grad[:, :, :500].any() and not grad[:, :, 550:].any()


@each_loss
def test_images_that_share_a_program_are_as_single_ones(name, monkeypatch):
    logits, target = case((11, 3, 7))
    single = kernel(name, logits, target)
    monkeypatch.setattr(loss_call, "_PROGRAMS", 1)
    with recording() as launches:
        kernel(name, logits, target)
    assert launches[0].constants["IMAGES"] == 8 and launches[0].programs == 2
    assert same_but_for_the_order_of_sums(name, logits, kernel(name, logits, target), single)


@each_loss
def test_programs_in_any_order_give_the_same_bits(name, every_order, small_blocks):
    logits, target = case((7, 3, 20))
    value, grad = every_order(lambda: kernel(name, logits, target))
    assert_true(name, logits, target, (value, grad))


@pytest.mark.parametrize("name", ["smooth_ce", "consistency_loss"])
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_reductions_are_those_of_the_single_losses(name, batch, monkeypatch):
    monkeypatch.setattr(loss_call, "_SUMMED", 32)  # so that the largest batch takes three blocks
    logits, target = case((batch, 1, 2))
    (single, grad), (total, grad_total), (mean, grad_mean) = (
        call(name, logits, target, *reduced(name, word), True) for word in ("none", "sum", "mean")
    )
    assert torch.equal(grad, grad_total)
    # Summed in float64, rounded once to float32.
    assert float(total) == pytest.approx(float(single.double().sum()), rel=1.001 * 2**-24)
    assert float(mean) == pytest.approx(float(single.double().mean()), rel=1.001 * 2**-24)
    # smooth_ce rounds 3 times for a gradient, 4 times for that of a mean, and the product here once
    # more. consistency_loss divides by the batch, within 2 units in the last place, then rounds one
    # product for each of both gradients, and this one.
    assert torch.allclose(grad_mean * batch, grad, rtol=8 * 2**-24, atol=0)
