"""SmoothedClassifier: what it is given, in which types, and what it says of wrong ones."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_classifier import K, classifier, images
from torch import nn

import drf_fast
from drf_fast.errors import InputError

OPERATIONS = ("noisy_repeat", "vote", "clopper_pearson_lower", "certified_radius")


@pytest.mark.parametrize(
    "call",
    [
        lambda smoothed, x: smoothed.certify_batch(x, 0, 10, 0.01, 4),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 0, 0.01, 4),
        lambda smoothed, x: smoothed.select(x, 0, 4),
        lambda smoothed, x: smoothed.estimate(x, torch.zeros(6, dtype=torch.int64), 0, 4),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 10, 0.0, 4),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 10, 1.5, 4),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 10, 0.01, 0),
        lambda smoothed, x: smoothed.certify_batch(x[:0], 10, 10, 0.01, 4),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 10, 0.01, image_ids=torch.arange(5)),
        lambda smoothed, x: smoothed.certify_batch(x, 10, 10, 0.01, 4, image_ids=torch.arange(7)),
        lambda smoothed, x: smoothed.certify_batch(
            x, 10, 10, 0.01, 4, image_ids=torch.arange(-6, 0)
        ),
        lambda smoothed, x: smoothed.predict(x[0], 0, 0.01, 4),
        lambda smoothed, x: smoothed.predict(x[0], 10, 0.0, 4),
        lambda smoothed, x: smoothed.predict(x[0], 10, 1.5, 4),
    ],
)
def test_bad_arguments_raise_before_the_network_runs(backend, call):
    def never(rows: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network ran")

    with pytest.raises(ValueError, match="got"):
        call(classifier(never), images())


@pytest.mark.parametrize("sound", [False, True])
def test_numbers_of_numpy_and_tensors_name_images_and_errors(sound):
    levels = (images()[2] * 255).clamp(0, 255).to(torch.uint8)
    x = levels if sound else levels / 255
    smoothed: Any = classifier(sound=sound)
    expected = smoothed.certify(x, 20, 200, 0.25, 50, image_id=7)
    sevens = np.int32(7), np.uint8(7), torch.tensor(7), torch.tensor(7, dtype=torch.int32)
    for seven in sevens:
        assert smoothed.certify(x, 20, 200, 0.25, 50, image_id=seven) == expected
    for alpha in (np.float32(0.25), np.float64(0.25), torch.tensor(0.25)):
        assert smoothed.certify(x, 20, 200, alpha, 50, image_id=7) == expected
    for wrong in (2**70, -1, True, 1.0):
        with pytest.raises((TypeError, ValueError), match="image_id must"):
            smoothed.certify(x, 20, 200, 0.25, 50, image_id=wrong)


def test_a_noise_level_in_other_units_than_the_images_is_said_once():
    base = lambda rows: rows.flatten(1)[:, :K]  # noqa: E731
    other = drf_fast.SmoothedClassifier(base, K, 127.5, batch_size=20)
    with pytest.warns(UserWarning, match=r"sigma 127\.5 .* at most 4; divide .* 255 \(0\.5\)"):
        other.predict(images()[0], 20, 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.predict(images()[0], 20, 0.01)
        drf_fast.SmoothedClassifier(base, K, 4.0, batch_size=20).predict(images()[0], 20, 0.01)


def test_image_ids_are_tensors_arrays_or_lists():
    base = lambda rows: rows.flatten(1)[:, :K]  # noqa: E731
    few: Any = (20, 200, 0.01, 20)
    expected = classifier(base).certify_batch(images(), *few, image_ids=torch.arange(3, 9))
    assert len(set(expected.count.tolist())) > 1
    numbers = np.arange(3, 9)
    for ids in (list(range(3, 9)), numbers, numbers.astype(np.int32), torch.arange(3, 9).int()):
        found = classifier(base).certify_batch(images(), *few, image_ids=ids)
        assert torch.equal(found.count, expected.count)
    wrong: tuple[Any, ...] = (numbers / 2, [True] * 6, ["a"] * 6)
    for ids in wrong:
        with pytest.raises(TypeError, match="image_ids must be"):
            classifier(base).certify_batch(images(), *few, image_ids=ids)


def test_channels_that_come_last_are_said_once_and_first(capsys):
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(K))
    base(torch.zeros(1, 3, 12, 12))
    with pytest.raises(InputError, match=r"channels must come first: x\.permute\(2, 0, 1\)"):
        classifier(base).certify(torch.zeros(12, 12, 3), 5, 5, 0.01, 4)
    assert capsys.readouterr().err == ""  # no form of several is left out where none works


def test_an_image_with_a_gradient_is_not_held():
    x = (images()[0] * torch.ones((), requires_grad=True)).requires_grad_()
    smoothed = classifier(nn.Sequential(nn.Flatten(), nn.Linear(8, K)))
    expected = smoothed.certify(x, 20, 200, 0.25, 50)
    assert copy.deepcopy(smoothed).certify(images()[0], 20, 200, 0.25, 50) == expected


def test_images_that_the_network_asserts_against_are_a_sentence_and_change_nothing():
    class Asserting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, K)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            torch._assert(rows.shape[-1] == 4, "the wrong size")
            return self.head(rows.flatten(1))

    smoothed = classifier(Asserting(), precision="bf16")
    with pytest.raises(ValueError, match="must take images of shape .*the wrong size"):
        smoothed.certify(torch.zeros(1, 4, 2), 20, 200, 0.25, 50)
    smoothed.certify(images()[0], 20, 200, 0.25, 50)
    assert smoothed.choices["precision"] == "bf16" and smoothed.left_out == {}
