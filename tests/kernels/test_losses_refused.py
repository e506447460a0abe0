"""Bad input of the kernels of the three losses: an image becomes NaN, or the call is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_cases import call, case, each_loss, kernel, reduced, truth

from drf_fast.kernels.launch import KernelTooLargeError, recording


def poisoned(poison: Any, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Six images, of which numbers 2 and 4 are bad."""
    logits, target = case((6, 3, classes))
    if poison == "label":
        target[2], target[4] = classes, -1
    elif poison == "a label far away":
        target[2], target[4] = 2**32, -(2**32) + 1
    elif poison == "only -inf":
        logits[2, 2], logits[4, 0] = -math.inf, -math.inf
    elif poison == "at the label":
        logits[2, 1, target[2]], logits[4, 0, target[4]] = math.nan, math.inf
    elif poison == "a whole row":
        logits[2, 1], logits[4, 2] = math.nan, math.inf
    else:
        logits[2, 1, classes - 1], logits[4, 0, 0] = poison, poison
    return logits, target


POISONS = (
    math.nan,
    math.inf,
    "only -inf",
    "at the label",
    "a whole row",
    "label",
    "a label far away",
)


@each_loss
@pytest.mark.parametrize("passing", [False, True], ids=["registers", "blocks"])
@pytest.mark.parametrize("poison", POISONS, ids=str)
@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
def test_bad_values_make_their_image_nan_and_no_other(name, poison, passing, request):
    if passing:
        request.getfixturevalue("small_blocks")
    logits, target = poisoned(poison)
    good = torch.tensor([0, 1, 3, 5])
    if name != "macer_loss":
        single = reduced(name, "none")
        losses, grad = call(name, logits, target, *single, True)
        expected, expected_grad = call(name, logits[good], target[good], *single, True)
        assert losses.isnan().tolist() == [False, False, True, False, True, False]
        assert torch.equal(losses[good], expected) and torch.equal(grad[good], expected_grad)
    value, grad = kernel(name, logits, target)
    assert bool(value.isnan())
    assert bool(grad[[2, 4]].isnan().all() and grad[good].isfinite().all())


@each_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, "only -inf", "label"], ids=str)
def test_on_request_bad_values_are_refused_in_the_words_of_the_reference(name, poison, monkeypatch):
    logits, target = poisoned(poison)
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    with pytest.raises(ValueError) as expected:
        truth(name, logits, target)
    for need_grad in (True, False):
        with pytest.raises(ValueError) as got:
            kernel(name, logits, target, need_grad)
        assert str(got.value) == str(expected.value)
    good, labels = case((4, 3, 10))
    assert bool(kernel(name, good, labels)[0].isfinite())


@each_loss
def test_a_call_that_could_not_be_safe_is_refused(name):
    logits, target = case((4, 3, 5))
    for bad_logits, bad_target in (
        (logits, target[:3]),
        (logits, target.int()),
        (logits.int(), target),
        (logits[0], target),
        (logits[..., :1], target),
        (logits[:0], target[:0]),
        (logits.to("meta"), target),
    ):
        with pytest.raises((TypeError, ValueError), match=r"loss|smooth_ce|kernels"):
            kernel(name, bad_logits, bad_target)


@each_loss
def test_more_samples_than_a_program_holds_are_for_the_reference(name):
    many = torch.zeros(1, 2**15, 2).expand(4, -1, -1)
    with pytest.raises(KernelTooLargeError, match=r"^losses: their kernels take at most \d+ noise"):
        kernel(name, many, case((4, 3, 5))[1])


@each_loss
@pytest.mark.parametrize("shape", [(2**31, 1, 2), (1, 1, 2**31)], ids=str)
def test_more_images_or_classes_than_32_bits_count_are_refused(name, shape):
    logits = torch.empty(shape, device="meta")
    target = torch.empty(shape[0], dtype=torch.int64, device="meta")
    with recording() as launches, pytest.raises(ValueError, match=f"{name}: .*at most 2147418112"):
        kernel(name, logits, target)
    assert not launches
