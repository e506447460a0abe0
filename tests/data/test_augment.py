"""Random crops and flips: right distribution, and a function of seed, epoch and image id alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

from drf_fast import data
from drf_fast.data import augment

SIDE = 12


def coded(count: int) -> torch.Tensor:
    """Images whose pixels tell their place: 1 + row in channel 0, 1 + column in channel 1."""
    rows = torch.arange(1, SIDE + 1).view(SIDE, 1).expand(SIDE, SIDE)
    return torch.stack([rows, rows.T]).to(torch.uint8).expand(count, 2, SIDE, SIDE).contiguous()


def by_hand(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    """Pixel by pixel: what a crop at (top, left) of the padded image shows, then flipped."""
    result = torch.zeros_like(image)
    for y in range(SIDE):
        for x in range(SIDE):
            row, column = y + top - 4, (SIDE - 1 - x if flip else x) + left - 4
            if 0 <= row < SIDE and 0 <= column < SIDE:
                result[:, y, x] = image[:, row, column]
    return result


def test_crops_are_those_of_the_padded_image():
    torch.manual_seed(0)
    images, ids = torch.randint(0, 256, (40, 3, SIDE, SIDE)).to(torch.uint8), torch.arange(40) * 3
    got = augment.crop_flip(images, ids, 7, 2)
    assert got.dtype == torch.uint8 and got.is_contiguous() and got.shape == images.shape
    flips = 0
    for image, image_id, crop in zip(images, ids.tolist(), got, strict=True):
        down, across, flip, _ = augment.uniforms(7, 2, image_id)
        flips += flip >= 0.5
        assert torch.equal(crop, by_hand(image, int(9 * down), int(9 * across), flip >= 0.5))
    assert 0 < flips < 40


def test_offsets_and_flips_are_uniform():
    count = 20_000
    got = augment.crop_flip(coded(count), torch.arange(count), 0, 0).long()
    middle = got[:, :, SIDE // 2, SIDE // 2]  # 4 pixels of padding never reach it
    flipped = got[:, 1, SIDE // 2, SIDE // 2 - 1] > middle[:, 1]
    row = middle[:, 0] - 1 - SIDE // 2 + 4
    column = torch.where(flipped, SIDE - 1 - SIDE // 2, SIDE // 2)
    column = middle[:, 1] - 1 - column + 4
    for drawn, outcomes in ((row, 9), (column, 9), (flipped.long(), 2)):
        counts = drawn.bincount(minlength=outcomes)
        assert len(counts) == outcomes
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    joint = (row * 18 + column * 2 + flipped).bincount(minlength=162)
    assert stats.chisquare(joint.numpy()).pvalue > 1e-4  # independent of each other


def test_draws_of_neighbouring_seeds_epochs_and_ids_are_independent():
    draws = torch.tensor(
        [augment.uniforms(s, e, i, a)[0] for s in range(9) for e in range(9) for i in range(9)
         for a in range(3)], dtype=torch.float64,
    )  # fmt: skip
    assert len(draws.unique()) == len(draws) == 2187
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-4


def test_an_image_is_the_same_in_any_batch_and_differs_between_epochs():
    images, ids = coded(60), torch.arange(60)
    whole = augment.crop_flip(images, ids, 1, 0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = [augment.crop_flip(images[part], ids[part], 1, 0) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (augment.crop_flip(images, ids, 1, 1), augment.crop_flip(images, ids, 2, 0)):
        assert (other != whole).flatten(1).any(1).sum() > 50  # one in 162 may repeat by chance


@pytest.fixture(scope="module")
def small() -> data.Dataset:
    return data.load("mnist-mini", "train", limit=50)


def epoch_of(dataset: data.Dataset, **options) -> dict[int, torch.Tensor]:
    settings: dict[str, Any] = {"shuffle_seed": 4, "epoch": 1, "augment": "crop-flip"} | options
    seen = {}
    for images, labels, ids in data.batches(dataset, settings.pop("size", 7), **settings):
        assert torch.equal(labels, dataset.labels[ids])
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        seen |= dict(zip(ids.tolist(), images, strict=True))
    return seen


def test_batches_crop_and_flip_only_when_asked(small):
    plain, cropped = epoch_of(small, augment="none"), epoch_of(small)
    assert list(plain) == list(cropped) and len(cropped) == 50  # the order stays
    assert all(torch.equal(plain[i], small.float_images([i])[0]) for i in plain)
    assert sum(not torch.equal(plain[i], cropped[i]) for i in plain) > 40


def test_a_restart_and_another_batch_size_see_the_same_images(small):
    before = torch.get_rng_state()
    whole = epoch_of(small)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    rest = epoch_of(small, start=3)
    assert len(rest) == 50 - 21 and all(torch.equal(rest[i], whole[i]) for i in rest)
    other = epoch_of(small, size=16)
    assert all(torch.equal(other[i], whole[i]) for i in whole)
    assert any(not torch.equal(image, whole[i]) for i, image in epoch_of(small, epoch=2).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "rotate"}, "augment must be one of none, crop-flip, got 'rotate'"),
        ({"augment": "crop-flip", "shuffle_seed": None}, "expected a shuffle_seed"),
    ],
)
def test_wrong_requests_raise_before_the_first_batch(small, options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(small, 4, **({"shuffle_seed": 0, "epoch": 0} | options))


# ---- random parts of images of any size


def boxes(width: int, height: int, count: int) -> list[tuple[int, int, int, int, bool]]:
    return [augment.resized_crop_box(width, height, 0, 0, i) for i in range(count)]


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (37, 40), (1, 1), (3, 900)])
def test_a_box_lies_inside_its_image(size):
    width, height = size
    for left, top, w, h, _ in boxes(width, height, 300):
        assert w >= 1 and h >= 1
        assert left >= 0 and left + w <= width and top >= 0 and top + h <= height


def test_boxes_have_the_stated_areas_and_ratios():
    found = boxes(1000, 1000, 6000)
    shares = torch.tensor([w * h / 1e6 for _, _, w, h, _ in found])
    ratios = torch.tensor([math.log(w / h) for _, _, w, h, _ in found])
    assert 0.079 < shares.min() < 0.09 and 0.95 < shares.max() <= 1
    # A square takes a part of any allowed ratio up to 3/4 of its area: no draw there is rejected.
    small = shares[shares < 0.74].numpy()
    assert stats.kstest(small, stats.uniform(0.08, 0.66).cdf).pvalue > 1e-4
    span = math.log(16 / 9)
    of_small = ratios[shares < 0.74].numpy()
    assert stats.kstest(of_small, stats.uniform(-span / 2, span).cdf).pvalue > 1e-4
    flips = sum(flip for *_, flip in found)
    assert stats.binomtest(flips, len(found)).pvalue > 1e-4
    across = torch.tensor([left / (1000 - w) for left, _, w, _, _ in found if w < 900])
    down = torch.tensor([top / (1000 - h) for _, top, _, h, _ in found if h < 900])
    for places in (across, down):
        assert abs(places.mean() - 0.5) < 0.02 and abs(places.std() - 12**-0.5) < 0.02


def test_a_strip_that_no_box_fits_shows_its_centre():
    left, top, w, h, _ = augment.resized_crop_box(900, 3, 0, 0, 0)
    assert (w, h, top) == (4, 3, 0) and left == (900 - 4) // 2
