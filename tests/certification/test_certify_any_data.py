"""What ``drf_fast.certify_dataset`` takes for data, and what it answers to the rest."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from certified_pairs import COUNT, FEW, K, Pairs, images, labels, network, same, smoothed
from torch.utils.data import DataLoader, TensorDataset

import drf_fast


class Random(Pairs):
    def __getitem__(self, index: int):
        return torch.rand(1, 6, 6), 0


class Flipped(Pairs):
    """Every other image on average is the one before."""

    def __getitem__(self, index: int):
        x = images()[index]
        return (x if torch.rand(()) < 0.5 else x.flip(2)), 0


class Pictures(Pairs):
    def __getitem__(self, index: int):
        return "a picture", 0


class Alone(Pairs):
    def __getitem__(self, index: int):
        return images()[index]


class Dicts(Pairs):
    def __getitem__(self, index: int):
        return {"image": images()[index], "label": 0}


class Sizes(Pairs):
    def __getitem__(self, index: int):
        return images()[index][:, : 5 if index == 4 else 6], 0


class Labelled(Pairs):
    """The pictures with the same label for each."""

    def __init__(self, label: Any) -> None:
        self.label = label

    def __getitem__(self, index: int):
        return images()[index], self.label


WHOLE = "must give one whole number as the label of an image, got"


ONE_HOT = torch.eye(K, dtype=torch.int64)


@pytest.mark.parametrize(
    ("pictures", "classes", "more", "error", "message"),
    [
        (Dicts(), None, {}, TypeError, r"got a dict with the keys image, label; wrap it"),
        (Dicts(), labels(), {}, TypeError, r"got a dict with the keys image, label; wrap it"),
        (
            Sizes(),
            None,
            {},
            ValueError,
            r"\(1, 6, 6\) for item \d and \(1, 5, 6\) for item 4; resize",
        ),
        (Labelled(2.7), None, {}, TypeError, rf"{WHOLE} .*2\.7 for item 0; number the classes"),
        (Labelled("3"), None, {}, TypeError, rf"{WHOLE} .*'3' for item 0; number the classes"),
        (Labelled(None), None, {}, TypeError, rf"{WHOLE} .*None.* for item 0; number"),
        (Labelled(ONE_HOT[2]), None, {}, TypeError, rf"{WHOLE} shape \(4,\) .*label\.argmax\(\)"),
        (Labelled(torch.tensor(1.0)), None, {}, TypeError, rf"{WHOLE} shape \(\) of float32"),
        (images(), labels()[:, None], {}, ValueError, r"pass labels\.squeeze\(1\)"),
        (images(), ONE_HOT[labels()], {}, ValueError, r"pass labels\.argmax\(1\)"),
        (images(), ["cat"] * 9, {}, TypeError, "labels must be 9 whole .* number the classes"),
        (images(), [None] * 9, {}, TypeError, "labels must be 9 whole .* number the classes"),
        ("images.npz", labels(), {}, TypeError, r"got str; pass the arrays .*np\.load"),
        (Path("images.npz"), labels(), {}, TypeError, r"got PosixPath; pass the arrays"),
        (images(), None, {}, TypeError, "labels must be given"),
        (images(), labels()[:3], {}, ValueError, "labels must be 9 whole numbers"),
        (images(), labels() + 1, {}, ValueError, "labels must lie between 0 and 3.* got 4"),
        (images(), labels().double(), {}, ValueError, "whole numbers"),
        (Random(), None, {}, ValueError, "leave random transforms out"),
        (Flipped(), None, {}, ValueError, "leave random transforms out"),
        (Pictures(), None, {}, TypeError, r"got str; make them with .*ToTensor\(\)"),
        (Alone(), None, {}, TypeError, r"pairs \(image, label\), got Tensor; pass labels="),
        (Alone(), labels()[:3], {}, ValueError, "labels must be 9 whole numbers"),
        (Alone(), labels() - 1, {}, ValueError, "labels must lie between 0 and 3.* got -1"),
        (3.5, labels(), {}, TypeError, "images must be a tensor or array .*got float"),
        (images(), labels(), {"indices": []}, ValueError, "got none"),
        (images(), labels(), {"indices": [0, 9]}, ValueError, "positions from 0 to 8"),
        (images(), labels(), {"indices": [1, 1]}, ValueError, "must be different positions"),
        (images(), labels(), {"resume": True}, ValueError, "expected out= with them"),
        (images(), labels(), {"n0": 0}, ValueError, "n0"),
        (images(), labels(), {"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_what_cannot_be_certified_gets_one_sentence(pictures, classes, more, error, message):
    with pytest.raises(error, match=message):
        drf_fast.certify_dataset(smoothed(), pictures, classes, **{**FEW, **more})


@pytest.mark.parametrize(
    "label", [1, np.int64(1), torch.tensor(1), torch.tensor([1]), np.array([1], np.uint8), True]
)
def test_a_label_is_a_number_or_a_tensor_or_array_of_one(label):
    assert drf_fast.certify_dataset(smoothed(), Labelled(label), **FEW).label.tolist() == [1] * 9


def test_a_file_of_arrays_is_answered_with_its_arrays(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.asarray(images()))
    refused = pytest.raises(TypeError, match=r"got NpzFile; pass the arrays .*np\.load")
    with np.load(tmp_path / "images.npz") as arrays, refused:
        drf_fast.certify_dataset(smoothed(), arrays, labels(), **FEW)


def test_a_bare_network_is_answered_with_a_classifier():
    with pytest.raises(TypeError, match="got Sequential; pass SmoothedClassifier"):
        drf_fast.certify_dataset(network(), images(), labels(), **FEW)  # type: ignore[arg-type]


def test_arrays_of_any_memory_are_read_without_a_warning(tmp_path):
    expected = drf_fast.certify_dataset(smoothed(), images(), labels(), **FEW)
    array = np.asarray(images())
    np.save(tmp_path / "images.npy", array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    reverse, backwards = array.astype(">f4"), np.asarray(labels()).astype(">i8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, classes in ((mapped, labels()), (reverse, backwards), (array, [*range(4)] * 3)):
            classes = classes[:COUNT]
            same(expected, drf_fast.certify_dataset(smoothed(), given, classes, **FEW))
    assert np.array_equal(mapped, array)


def test_levels_of_16_bits_are_answered_with_their_divisor():
    if not hasattr(torch, "uint16"):
        pytest.skip("this torch has no uint16")
    levels = (np.asarray(images()) * 65535).astype(np.uint16)
    with pytest.raises(TypeError, match=r"convert 16-bit images with x\.float\(\) / 65535"):
        drf_fast.certify_dataset(smoothed(), levels, labels(), **FEW)


def test_a_loader_is_answered_with_its_data_set():
    loader = DataLoader(TensorDataset(images(), labels()), batch_size=2)
    with pytest.raises(TypeError, match=r"pass loader\.dataset"):
        drf_fast.certify_dataset(smoothed(), loader, **FEW)
