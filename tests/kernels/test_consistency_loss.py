"""consistency_loss's kernel: excluded classes in loops over blocks; tensors as weights."""

from __future__ import annotations

import math

import pytest
import torch
from values import scalar

from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import loss_call
from drf_fast.kernels.consistency_loss import consistency_loss

ETA = torch.tensor(0.5, dtype=torch.float64)


@pytest.fixture(params=["registers", "blocks"])
def place(request, monkeypatch):
    """Where the logits are kept: a row of 40 classes is three blocks."""
    if request.param == "blocks":
        monkeypatch.setattr(loss_call, "_SHORT_ROWS", 0)
        monkeypatch.setattr(loss_call, "_PASSING_ROWS", 32)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("excluded", [0, 17, 39])
@pytest.mark.parametrize("gap", [0.0, 200.0])
def test_a_class_that_one_sample_excludes_makes_the_loss_infinite(place, samples, excluded, gap):
    generator = torch.Generator().manual_seed(samples)
    logits = torch.randn(2, samples, 40, generator=generator)
    target = torch.tensor([20, 20])
    logits[0, :, excluded] = -gap
    logits[0, 1, excluded] = -math.inf
    for weight in (2.0, 0.0):
        loss, grad = consistency_loss(logits, target, scalar(weight), ETA, "none", True)
        expected, expected_grad = reference.consistency_loss(
            logits.double(), target, scalar(weight), ETA, "none", True
        )
        assert loss.isfinite().tolist() == expected.isfinite().tolist() == [weight == 0, True]
        finite = expected.isfinite()
        assert torch.allclose(loss[finite].double(), expected[finite], rtol=1e-6)
        error = (grad.double() - expected_grad).abs().max()
        assert float(error) <= 2e-6 * float(expected_grad.abs().max())


@pytest.mark.parametrize("samples", [1, 3])
def test_a_class_that_every_sample_excludes_plays_no_part(place, samples):
    logits = torch.randn(2, samples, 40, generator=torch.Generator().manual_seed(0))
    logits[:, :, 5] = logits[:, :, 39] = -math.inf
    target = torch.tensor([0, 38])
    loss, grad = consistency_loss(logits, target, scalar(3.0), ETA, "sum", True)
    kept = [k for k in range(40) if k not in (5, 39)]
    labels = torch.tensor([0, kept.index(38)])
    expected, expected_grad = reference.consistency_loss(
        logits[..., kept].double(), labels, scalar(3.0), ETA, "sum", True
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    error = (grad[..., kept].double() - expected_grad).abs().max()
    assert float(error) <= 2e-6 * float(expected_grad.abs().max())
    assert not grad[..., [5, 39]].any()


def test_equal_samples_have_no_divergence(place):
    logits = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.tensor([0, 38])
    equal = logits.expand(2, 5, 40)
    with_kl, _ = consistency_loss(equal, target, scalar(100.0), scalar(0.0), "sum", False)
    without, _ = consistency_loss(equal, target, scalar(0.0), scalar(0.0), "sum", False)
    # float32: the logarithm of a mean and the mean of logarithms round differently.
    assert float(with_kl) == pytest.approx(float(without), rel=2e-5)


def test_a_weight_that_changes_in_place_is_read_anew():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 4])
    weight = scalar(1.0)
    first, _ = consistency_loss(logits, target, weight, ETA, "sum", False)
    weight.fill_(2.0)
    second, _ = consistency_loss(logits, target, weight, ETA, "sum", False)
    expected, _ = consistency_loss(logits, target, scalar(2.0), ETA, "sum", False)
    assert torch.equal(second, expected) and not torch.equal(first, second)
