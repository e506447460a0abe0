"""CIFAR-10 from the published binary records: unpacked, in the archive, missing, damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from drf_fast import data
from drf_fast.data import cifar
from drf_fast.errors import InputError

RECORDS = 12
NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


def change(monkeypatch, **changes) -> None:
    kind = cifar.KINDS["cifar10"]
    monkeypatch.setitem(cifar.KINDS, "cifar10", dataclasses.replace(kind, **changes))


def publish(monkeypatch, archive: Path) -> None:
    """Make the archive the published one."""
    binary = cifar.KINDS["cifar10"].binary
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    change(monkeypatch, binary=dataclasses.replace(binary, md5=md5))


@pytest.fixture(autouse=True)
def short_files(monkeypatch):
    change(monkeypatch, records={"train": RECORDS, "test": RECORDS})


def record_files() -> dict[str, bytes]:
    """A made-up CIFAR-10; red, green, blue planes follow the label byte."""
    random = np.random.default_rng(5)
    files = {}
    for name in NAMES:
        records = random.integers(0, 256, (RECORDS, 3073), np.uint8)
        records[:, 0] = np.arange(RECORDS) % 10
        files[name] = records.tobytes()
    return files


def write_unpacked(folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    files = record_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def write_archive(path: Path, monkeypatch) -> dict[str, bytes]:
    files = record_files()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    publish(monkeypatch, path)
    return files


def load(folder: Path, split: str = "test") -> data.Dataset:
    return data.load("cifar10", split, data_dir=folder, download=False)


@pytest.mark.parametrize("below", ["cifar-10-batches-bin", "."])
def test_records_become_images_and_labels(tmp_path, below):
    files = write_unpacked(tmp_path / below)
    train, test = load(tmp_path, "train"), load(tmp_path)
    assert train.images.shape == (5 * RECORDS, 3, 32, 32) and len(test) == RECORDS
    assert (train.num_classes, train.class_names[3]) == (10, "cat")
    for split, names in ((train, NAMES[:5]), (test, NAMES[5:])):
        content = b"".join(files[name] for name in names)
        for index in range(len(split)):
            record = content[index * 3073 : (index + 1) * 3073]
            assert split.labels[index] == record[0]
            pixels = split.images[index]
            for channel, y, x in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 4, 7), (2, 31, 31)):
                assert pixels[channel, y, x] == record[1 + 1024 * channel + 32 * y + x]


def test_the_archive_is_read_without_unpacking(tmp_path, monkeypatch):
    write_unpacked(tmp_path / "unpacked")
    write_archive(tmp_path / "cifar-10-binary.tar.gz", monkeypatch)
    for split in ("train", "test"):
        assert load(tmp_path, split).fingerprint == load(tmp_path / "unpacked", split).fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cifar-10-binary.tar.gz", "unpacked",
    ]  # fmt: skip


def test_another_archive_is_refused_by_its_checksum(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, monkeypatch)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="expected the MD5 .* fetch it again") as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"no archive", None], ids=["no tar", "a file is missing"])
def test_an_archive_that_does_not_unpack_is_named(tmp_path, monkeypatch, content):
    path = tmp_path / "cifar-10-binary.tar.gz"
    if content is None:
        with tarfile.open(path, "w:gz"):
            pass
    else:
        path.write_bytes(content)
    publish(monkeypatch, path)
    with pytest.raises(InputError, match="cannot unpack .*fetch it again") as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3073], r"expected 12 records of 3073 bytes.*got 33,803 bytes"),
        (lambda content: content + b"x", "got 36,877 bytes"),
        (lambda content: b"", "got 0 bytes"),
        (lambda content: b"\x0a" + content[1:], "labels from 0 to 9, got 10"),
    ],
)
def test_damaged_records_are_named(tmp_path, damage, message):
    files = write_unpacked(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(damage(files["data_batch_3.bin"]))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, "train")
    assert str(tmp_path / "data_batch_3.bin") in str(caught.value)
    assert len(load(tmp_path)) == RECORDS  # the other split is whole


def test_missing_files_say_what_and_where(tmp_path):
    write_unpacked(tmp_path)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(InputError, match="train files of CIFAR-10 are missing") as caught:
        load(tmp_path, "train")
    message = str(caught.value)
    assert "cifar-10-binary.tar.gz" in message and str(tmp_path) in message and "\n" not in message


def test_a_download_is_checked_and_kept(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    asked = []

    def serve(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        write_archive(Path(root, filename), monkeypatch)

    monkeypatch.setattr(utils, "download_url", serve)
    target = tmp_path / "new"
    assert data.load("cifar10", "test", data_dir=target).images.shape == (RECORDS, 3, 32, 32)
    assert asked == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
        )
    ]
    assert [path.name for path in target.iterdir()] == ["cifar-10-binary.tar.gz"]
    data.load("cifar10", "train", data_dir=target)
    assert len(asked) == 1  # kept


def test_no_network_leaves_nothing(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def fail(url: str, root: str, filename: str, md5: str) -> None:
        Path(root, filename).write_bytes(b"half")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_url", fail)
    with pytest.raises(InputError, match="cannot download CIFAR-10: .*--data-dir"):
        data.load("cifar10", "test", data_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_images_are_torch_bytes_that_may_be_written(tmp_path):
    write_unpacked(tmp_path)
    images = load(tmp_path).images
    assert isinstance(images, torch.Tensor) and images.dtype == torch.uint8
    images[0].fill_(0)  # no view of a read-only buffer
