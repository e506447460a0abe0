"""Memory accesses of the kernels of the three losses: any layout, and minimal traffic."""

from __future__ import annotations

import phantom
import pytest
import torch
from loss_cases import (
    LOSSES,
    call,
    case,
    each_dtype,
    each_loss,
    in_other_layouts,
    kernel,
    reduced,
    same_but_for_the_order_of_sums,
)

from drf_fast.kernels.launch import recording

# Reads of the logits where they do not fit into registers.
PASSES = {"smooth_ce": 2, "consistency_loss": 3, "macer_loss": 3}


@each_loss
@each_dtype
def test_no_layout_changes_the_numbers_or_touches_its_neighbours(name, dtype):
    for classes in (2, 10, 16):
        logits, target = case((2, 3, classes), dtype)
        value, grad = kernel(name, logits, target)
        for layout, view in in_other_layouts(logits).items():
            result = kernel(name, view, target)
            same = same_but_for_the_order_of_sums(name, logits, result, (value, grad))
            assert same, (layout, classes)
            assert result[1].stride() == torch.empty_like(view).stride(), layout
        equal = logits[:, :1].expand(2, 3, classes)
        dense = kernel(name, equal.contiguous(), target)
        result = kernel(name, equal, target)
        assert same_but_for_the_order_of_sums(name, equal, result, dense)


@each_loss
@pytest.mark.parametrize("shape", [(3, 2, 10), (2, 16, 33), (1, 3, 1000)], ids=str)
@pytest.mark.parametrize("major", ["image", "sample"])
def test_logits_are_read_once_and_the_gradient_is_written_once(name, shape, major):
    logits, target = case(shape)
    if major == "sample":
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    with phantom.watch() as traces:
        kernel(name, logits, target)
    batch, rows = shape[0], logits.numel() * logits.element_size()
    weights = sum(isinstance(argument, torch.Tensor) for argument in LOSSES[name])
    trace = traces[0]
    assert trace.bytes("load") == rows + batch * (8 + 8 * weights)
    assert trace.bytes("store") == trace.distinct_bytes("store") == rows + batch * 4
    assert not trace.outside() and not trace.races()


@each_loss
def test_logits_that_pass_by_are_read_as_often_as_it_says(name, small_blocks):
    logits, target = case((2, 2, 300))
    for need_grad in (True, False):
        with phantom.watch() as traces:
            kernel(name, logits, target, need_grad)
        reads = PASSES[name] - (not need_grad)
        rows = logits.numel() * 4
        weights = sum(isinstance(argument, torch.Tensor) for argument in LOSSES[name])
        assert traces[0].bytes("load") == reads * rows + 2 * (8 + 8 * weights)
        assert traces[0].bytes("store") == rows * need_grad + 2 * 4
        assert not traces[0].outside() and not traces[0].races()


@each_loss
@pytest.mark.parametrize("classes", [16, 17])  # strides passed divided by 16, or by 1
def test_offsets_beyond_2_to_the_31_stay_inside(name, classes):
    batch = 2**31 // classes + 5
    logits = torch.empty((3, batch, classes), device="meta").transpose(0, 1)
    target = torch.empty(batch, dtype=torch.int64, device="meta")
    with recording() as launches:
        kernel(name, logits, target)
    last = launches[0].programs - 1
    trace = phantom.run(launches[0], (0, last // 2, last))
    assert not trace.outside() and not trace.races()
    assert trace.bytes("store") == trace.distinct_bytes("store")


@each_loss
@each_dtype
def test_without_a_gradient_the_value_is_the_same_and_nothing_else_is_written(name, dtype):
    logits, target = case((3, 4, 10), dtype)
    before = logits.clone()
    with phantom.watch() as traces:
        value, grad = kernel(name, logits, target, False)
    full = kernel(name, logits, target)[0]
    assert same_but_for_the_order_of_sums(name, logits, (value,), (full,))
    assert grad.shape == (0,) and grad.dtype == dtype
    assert traces[0].bytes("store") == 3 * value.element_size()
    assert torch.equal(logits, before)


@each_loss
def test_a_sum_or_mean_takes_two_launches_and_single_losses_one(name):
    logits, target = (tensor.to("meta") for tensor in case((600, 4, 10)))
    reductions = ("mean",) if name == "macer_loss" else ("none", "sum", "mean")
    for reduction in reductions:
        with recording() as launches:
            value, grad = call(name, logits, target, *reduced(name, reduction), True)
        assert len(launches) == (1 if reduction == "none" else 2)
        assert value.shape == ((600,) if reduction == "none" else ())
        assert grad.shape == logits.shape
