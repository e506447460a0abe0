"""Batches from memory: complete, reproducible, restartable."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drf_fast import data


@pytest.fixture(scope="module")
def small() -> data.Dataset:
    return data.load("mnist-mini", "test", limit=50)


def order(dataset: data.Dataset, **options) -> list[int]:
    settings: dict[str, Any] = {"shuffle_seed": 1, "epoch": 0} | options
    return torch.cat([ids for _, _, ids in data.batches(dataset, 7, **settings)]).tolist()


def test_an_epoch_shows_every_image_once_with_its_label(small):
    seen = []
    for images, labels, ids in data.batches(small, 7, shuffle_seed=3, epoch=2):
        assert images.dtype == torch.float32 and ids.dtype == torch.int64
        assert torch.equal(images, small.images[ids].float() / 255)
        assert torch.equal(labels, small.labels[ids])
        seen += ids.tolist()
    assert sorted(seen) == list(range(50)) and seen != list(range(50))


def test_without_a_seed_the_order_is_that_of_the_data(small):
    assert order(small, shuffle_seed=None, epoch=5) == list(range(50))


def test_the_order_depends_on_seed_and_epoch_only(small):
    torch.manual_seed(0)
    first = order(small)
    torch.manual_seed(99)
    assert order(small) == first
    # Not merely on seed + epoch: runs with neighbouring seeds must not share epochs.
    orders = [order(small, shuffle_seed=s, epoch=e) for s in (0, 1, 2) for e in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 9


def test_the_global_generator_is_untouched(small):
    before = torch.get_rng_state()
    order(small)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 100])
def test_a_restart_continues_where_the_epoch_was_left(small, start):
    whole = list(data.batches(small, 7, shuffle_seed=4, epoch=1))
    rest = list(data.batches(small, 7, shuffle_seed=4, epoch=1, start=start))
    assert [b[2].tolist() for b in rest] == [b[2].tolist() for b in whole[start:]]


def test_the_last_batch_is_dropped_only_on_request_and_only_if_short(small):
    sizes = [len(b[1]) for b in data.batches(small, 7, shuffle_seed=0, epoch=0)]
    assert sizes == [7] * 7 + [1]
    kept = list(data.batches(small, 7, shuffle_seed=0, epoch=0, drop_last=True))
    assert [len(b[1]) for b in kept] == [7] * 7
    even = list(data.batches(small, 10, shuffle_seed=0, epoch=0, drop_last=True))
    assert [len(b[1]) for b in even] == [10] * 5


@pytest.mark.parametrize(("size", "epoch", "start"), [(0, 0, 0), (4, -1, 0), (4, 0, -1)])
def test_wrong_numbers_raise_before_the_first_batch(small, size, epoch, start):
    with pytest.raises(ValueError, match="must be"):
        data.batches(small, size, shuffle_seed=0, epoch=epoch, start=start)


def test_torchs_default_device_decides_nothing():
    images = data.load("mnist-mini", "train", limit=40)

    def epoch() -> list[torch.Tensor]:
        chosen = {"shuffle_seed": 3, "epoch": 1, "augment": "crop-flip"}
        return [tensor for batch in data.batches(images, 16, **chosen) for tensor in batch]

    expected = epoch()
    torch.set_default_device("meta")  # as "cuda", where there is one
    try:
        found = epoch()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
