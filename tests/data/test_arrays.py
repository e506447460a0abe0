"""Images and labels in an .npz file: the two naming schemes, shapes, refusals, training, logs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drf_fast import data, models
from drf_fast.certification import loading
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config.options import CertifyConfig
from drf_fast.errors import InputError

KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path: Path, names: tuple[str, ...] = KERAS, **changes: Any) -> Path:
    """12 training and 8 test images of 28 x 28, and labels 0, 1, 2, 0, ...; None leaves one out."""
    arrays: dict[str, Any] = {}
    for at, count in ((0, 12), (2, 8)):
        arrays[names[at]] = pixels(count, 28, 28, seed=at)
        arrays[names[at + 1]] = np.arange(count) % 3
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def load(path: Path, split: str = "test", **options: Any) -> data.Dataset:
    return data.load("npz", split, data_dir=path, **options)


@pytest.mark.parametrize("names", [KERAS, MEDMNIST])
def test_both_naming_schemes(tmp_path, names):
    path = write(tmp_path / "a.npz", names, **{names[3]: np.arange(8, dtype=np.uint8)[:, None] % 4})
    train, test = load(path, "train"), load(path)
    assert np.array_equal(torch.as_tensor(test.images).numpy()[:, 0], pixels(8, 28, 28, seed=2))
    assert train.image_shape == test.image_shape == (1, 28, 28) and len(train) == 12
    assert test.labels.dtype == torch.int64 and test.labels.tolist() == [0, 1, 2, 3] * 2
    assert train.num_classes == test.num_classes == 4  # of both splits
    assert test.class_names == ("0", "1", "2", "3")
    assert (test.name, test.split, len(test.fingerprint)) == ("npz", "test", 64)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((8, 9, 10, 3), (0, 3, 1, 2)), ((8, 9, 10, 1), (0, 3, 1, 2)), ((8, 3, 9, 10), (0, 1, 2, 3)),
     ((8, 1, 9, 10), (0, 1, 2, 3))],
)  # fmt: skip
def test_channels_come_first(tmp_path, shape, axes):
    test = load(write(tmp_path / "a.npz", x_test=pixels(*shape)))
    assert np.array_equal(torch.as_tensor(test.images).numpy(), pixels(*shape).transpose(axes))


def test_the_fingerprint_is_of_pixels_and_labels(tmp_path):
    path = write(tmp_path / "a.npz", x_test=pixels(8, 9, 10, 3))
    whole, few = load(path), load(path, limit=5)
    moved = write(tmp_path / "b.npz", x_test=pixels(8, 9, 10, 3).transpose(0, 3, 1, 2))
    assert load(moved).fingerprint == whole.fingerprint != few.fingerprint
    assert len(few) == 5 and torch.equal(few.images[:], whole.images[:5])
    assert load(path, limit=99).fingerprint == whole.fingerprint
    other = write(tmp_path / "c.npz", x_test=pixels(8, 9, 10, 3), y_test=np.ones(8, np.int64))
    assert load(other).fingerprint != whole.fingerprint


def test_one_split_may_be_absent(tmp_path):
    path = write(tmp_path / "a.npz", x_train=None, y_train=None)
    assert load(path).num_classes == 3
    with pytest.raises(InputError, match="no train images: expected the arrays x_train and y_t"):
        load(path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": pixels(8, 28, 28).astype(np.float32)}, "got float32 of shape (8, 28, 28)"),
        ({"x_test": pixels(8, 3, 28, 3)}, "which can be read in two ways"),
        ({"x_test": pixels(8, 28, 28, 4)}, "got uint8 of shape (8, 28, 28, 4); save"),
        ({"x_test": pixels(8, 784)}, "got uint8 of shape (8, 784)"),
        ({"x_test": pixels(0, 28, 28)}, "got uint8 of shape (0, 28, 28)"),
        ({"x_test": np.uint8(3)}, "got uint8 of shape ()"),
        ({"x_test": np.array([{}, None])}, "of plain arrays, got 'Object arrays cannot be loaded"),
        ({"y_test": np.arange(7)}, "8 images in x_test and 7 labels in y_test"),
        ({"y_test": np.ones(8)}, "y_test in", ),
        ({"y_test": np.ones((8, 14), np.int64)}, "got int64 of shape (8, 14)"),
        ({"y_train": np.int64(1)}, "y_train in"),
        ({"y_test": np.arange(8) - 1}, "got -1 to 6; number them from 0"),
        ({"y_test": np.arange(8) + 10**9}, "expected classes from 0 to at most 99,999"),
        ({"x_test": None}, "has no test images: expected the arrays x_test and y_test, or test_im"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_arrays_are_refused(tmp_path, changes, message):
    path = write(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError) as caught:
        load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [np.arange(8) % 2, np.zeros(8, int)], ids=["two", "one"])
def test_labels_of_a_part_of_the_classes(tmp_path, labels):
    """As of a file of test images alone, for a network of more classes."""
    path = write(tmp_path / "a.npz", x_train=None, y_train=None, y_test=labels)
    part, whole = load(path), load(path, num_classes=5)
    assert part.num_classes == 2 and whole.num_classes == 5
    assert whole.class_names == ("0", "1", "2", "3", "4")
    assert part.fingerprint == whole.fingerprint and whole.labels.tolist() == labels.tolist()
    assert load(write(tmp_path / "b.npz"), num_classes=2).num_classes == 3  # never fewer

    assert load(path, num_classes=10**15).num_classes == 100_000  # of a damaged checkpoint


@pytest.mark.parametrize("largest", [0, 1, 2, 3])
def test_a_network_of_more_classes_is_certified(tmp_path, largest):
    path = write(
        tmp_path / "a.npz", x_train=None, y_train=None, y_test=np.minimum(np.arange(8), largest)
    )
    content = {
        "model": models.build("lenet", 3, (1, 28, 28)).state_dict(),
        "arch": "lenet",
        "num_classes": 3,
        "image_shape": [1, 28, 28],
        "config": {"sigma": 0.5, "data": "npz", "method_label": "x", "normalize": "none"},
    }
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    config = CertifyConfig(checkpoint=tmp_path / "checkpoint.pt", data_dir=path)
    if largest < 3:
        assert loading.source(config).images.num_classes == 3
    else:
        with pytest.raises(InputError, match="into 3 classes, got npz with images .* and 4 class"):
            loading.source(config)


def test_nothing_can_be_learned_of_one_class(tmp_path):
    path = write(tmp_path / "a.npz", y_test=np.zeros(8, int), y_train=np.zeros(12, int))
    with pytest.raises(InputError, match="labels of one class: expected two or more; check y_tra"):
        load(path, "train")
    assert load(path, "train", num_classes=3).num_classes == 3  # certified, not trained on


def test_other_files_are_refused(tmp_path):
    whole = write(tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "one.npy", pixels(8, 28, 28))
    no_zip = {"empty": b"", "text": b"hello", "late": b"\n" + whole}
    damaged = {"cut": whole[:-100], "early": whole[:3000]}
    flipped = bytearray(whole)
    flipped[2000] ^= 1  # of the pixels: the archive has checksums
    damaged["flipped"] = bytes(flipped)
    for name, content in (no_zip | damaged).items():
        (tmp_path / name).write_bytes(content)
        reason = "no .npz file;" if name in no_zip else "'.*';"
        expected = f"cannot read .*{name}: expected an .npz file of plain arrays, got {reason} save"
        with pytest.raises(InputError, match=expected) as caught:
            load(tmp_path / name, "train")
        assert "pickle" not in str(caught.value)
    with pytest.raises(InputError, match="holds one array"):
        load(tmp_path / "one.npy")
    with pytest.raises(InputError, match="expected an .npz file, got a folder; check --data-dir"):
        load(tmp_path)
    with pytest.raises(InputError, match="got no such file"):
        load(tmp_path / "absent.npz")
    with pytest.raises(InputError, match="expected --data-dir FILE.npz, got none"):
        data.load("npz", "test")


def npy(header: str, content: bytes = b"") -> bytes:
    """A file of NumPy with any header."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + content


def header(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"no header", "the magic string is not correct"),
        (b"", "EOF"),
        (npy(header("(10**30,)")), "malformed node or string"),
        (npy(header(f"({10**30},)"), bytes(9)), "got '9 bytes of x_train.npy, whose header promi"),
        (npy(header("(10000000000000, 8, 8)"), bytes(9)), "promises 640,000,000,000,000'"),
        (npy(header("(10,)"), bytes(9)), "whose header promises 10'"),
        (npy(header(f"(0, {10**30})")), "got '"),
        (npy(header("(3, 3)", "|O"), bytes(72)), "Object arrays cannot be loaded"),
        (npy("{'descr': '''"), "got '"),
        (npy("(" * 2000), "got '"),
        (npy(header("(-9,)"), bytes(9)), "got '"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npy", ""])
def test_members_that_are_no_arrays_are_refused(tmp_path, member, message, suffix):
    path = write(tmp_path / "a.npz", x_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"x_train{suffix}", member)
    with pytest.raises(InputError) as caught:
        load(path, "train")
    said = str(caught.value)
    assert said.startswith(f"cannot read {path}: expected an .npz file of plain arrays, got '")
    assert message.replace(".npy", suffix) in said and said.endswith("; save them with numpy.savez")
    assert "\n" not in said and len(load(path)) == 8  # the test split is whole


def test_arrays_that_memory_cannot_hold_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz")

    def full(*arguments: Any, **options: Any) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("numpy.lib.format.read_array", full)
    with pytest.raises(InputError, match="expected arrays that fit in memory, got larger ones; "):
        load(path)


def test_an_unknown_data_set_names_the_ways_to_use_ones_own(tmp_path):
    for name, remedy in (
        ("mine.npz", "for arrays --data npz --data-dir mine.npz"),
        (str(tmp_path), f"pass --data imagefolder --data-dir {tmp_path},"),
        ("mine:load", "(in Python, drf_fast.certify_dataset takes a torch Dataset)"),
    ):
        with pytest.raises(InputError, match="unknown data set") as caught:
            data.load(name, "test")
        assert remedy in str(caught.value)


@pytest.mark.slow
def test_arrays_are_trained_on_and_certified(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("a.npz"), MEDMNIST)
    words = ["train", "--data", "npz", "--data-dir", "a.npz", "--method", "gaussian"]
    words += ["--num-samples", "1", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]
    words += ["--memory-format", "contiguous", "--certify-images", "2", "--certify-n", "32"]
    assert main([*words, "--out", "run"]) == 0
    saved = checkpoint.load(Path("run/checkpoint.pt"))
    assert saved["num_classes"] == 3 and saved["image_shape"] == [1, 28, 28]
    assert saved["config"]["fingerprint"] == load(Path("a.npz"), "train").fingerprint
    run = tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the run knows where its file is
    few = ["--n", "32", "--n0", "4", "--device", "cpu", "--memory-format", "contiguous"]
    assert main(["certify", str(run), "--max-images", "3", *few, "--out", "log.tsv"]) == 0
    log = json.loads(Path("log.json").read_text())
    assert log["data"] == "npz" and log["fingerprint"] == load(tmp_path / "a.npz").fingerprint
    assert len(Path("log.tsv").read_text().splitlines()) == 4
    assert main(["report", "log.tsv", "--html", "page.html"]) == 0
    assert Path("page.html").read_text().count("<li data-state=") == 3
