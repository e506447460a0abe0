"""CIFAR-10 and CIFAR-100: the binary version, and the pickled one if its checksum is as published.

The binary version consists of records: a label (CIFAR-100: a coarse one, then the fine one, which
is the class) and 3,072 pixels.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drf_fast.data import pickled
from drf_fast.data.download import ALLOW, fetch_url, refuse_other_file
from drf_fast.data.folders import refuse_class_folders
from drf_fast.data.idx import read_bytes
from drf_fast.data.mnist import Arrays
from drf_fast.errors import InputError

_SITE = "https://www.cs.toronto.edu/~kriz"
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """One archive of a data set, its MD5, the folder inside, and the files of each split."""

    archive: str
    md5: str
    folder: str
    files: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Kind:
    """A data set.

    ``binary`` has ``records`` per file of each split, with ``label_bytes`` of which the last one is
    the class; ``python`` is the pickled version, whose files have the MD5s ``python_md5`` and whose
    labels are under the key ``python_labels``.
    """

    title: str
    classes: int
    records: dict[str, int]
    label_bytes: int
    binary: Version
    python: Version
    python_md5: dict[str, str]
    python_labels: bytes


# The MD5s are published beside the archives, those of the pickled files in torchvision.
KINDS = {
    "cifar10": Kind(
        title="CIFAR-10",
        classes=10,
        records={"train": 10_000, "test": 10_000},
        label_bytes=1,
        binary=Version(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            {
                "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
                "test": ("test_batch.bin",),
            },
        ),
        python=Version(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
            {
                "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
                "test": ("test_batch",),
            },
        ),
        python_md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        python_labels=b"labels",
    ),
    "cifar100": Kind(
        title="CIFAR-100",
        classes=100,
        records={"train": 50_000, "test": 10_000},
        label_bytes=2,
        binary=Version(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            {"train": ("train.bin",), "test": ("test.bin",)},
        ),
        python=Version(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
            {"train": ("train",), "test": ("test",)},
        ),
        python_md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        python_labels=b"fine_labels",
    ),
}


def read_cifar(name: str, split: str, data_dir: Path, download: bool) -> Arrays:
    """Read one split.

    Searched in this order: the unpacked files of the binary version, those of the pickled one, each
    in its folder in ``data_dir`` or in ``data_dir`` itself; then the archives in ``data_dir``,
    which are read without unpacking if their MD5 is the published one.

    Args:
        name: "cifar10" or "cifar100".
        split: "train" or "test".
        data_dir: the folder to search.
        download: download the archive of the binary version into ``data_dir`` if it is missing.

    Returns:
        images (N, 3, 32, 32) uint8 and labels (N,) uint8.

    Raises:
        InputError: files are missing, damaged or not the published ones, or cannot be fetched.
        OSError: the disk is full.
    """
    kind = KINDS[name]
    for version in (kind.binary, kind.python):
        for folder in (data_dir / version.folder, data_dir):
            paths = [folder / file for file in version.files[split]]
            if all(path.is_file() for path in paths):
                return _concatenated([_part(kind, split, read_bytes(path), path) for path in paths])
    for version in (kind.binary, kind.python):
        if (data_dir / version.archive).is_file():
            return _concatenated(_unpacked(kind, version, split, data_dir / version.archive))
    refuse_class_folders(kind.title, data_dir)
    if not download:
        raise InputError(
            f"the {split} files of {kind.title} are missing: expected the binary version, "
            f"{kind.binary.archive} or the folder {kind.binary.folder} unpacked from it, or the "
            f"Python version, {kind.python.archive} or {kind.python.folder}, in {data_dir}; fetch "
            f"one from {_SITE}/cifar.html, or name its folder with --data-dir, or {ALLOW}"
        )
    _download(kind, data_dir)
    return read_cifar(name, split, data_dir, download=False)


def _download(kind: Kind, data_dir: Path) -> None:
    archive, md5 = kind.binary.archive, kind.binary.md5
    fetch_url(kind.title, data_dir, data_dir, f"{_SITE}/{archive}", md5)


def _unpacked(kind: Kind, version: Version, split: str, archive: Path) -> list[Arrays]:
    """The files of a split, read from the archive without writing anything."""
    content = read_bytes(archive)
    refuse_other_file(content, version.md5, archive)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            result = []
            for name in version.files[split]:
                member = tar.extractfile(f"{version.folder}/{name}")
                assert member is not None  # the checksum was verified
                path = archive / version.folder / name
                result.append(_part(kind, split, member.read(), path))
            return result
    except (tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as error:
        raise InputError(
            f"cannot unpack {archive}: got '{error}'; delete it and fetch it again"
        ) from error


def _part(kind: Kind, split: str, content: bytes, path: Path) -> Arrays:
    """One file of either version; names of binary ones have a suffix."""
    if path.name in kind.python_md5:
        md5 = kind.python_md5[path.name]
        images, labels = pickled.read(content, md5, path, kind.python_labels)
    else:
        images, labels = _records(kind, content, kind.records[split], path)
    if labels.max(initial=0) >= kind.classes:
        raise InputError(
            f"{path} is damaged: expected labels from 0 to {kind.classes - 1}, got "
            f"{labels.max()}; delete it and fetch the archive again"
        )
    return images, labels


def _records(kind: Kind, content: bytes, count: int, path: Path) -> Arrays:
    record = kind.label_bytes + _PIXELS
    if len(content) != count * record:
        raise InputError(
            f"{path} is damaged: expected {count:,} records of {record} bytes, together "
            f"{count * record:,}, got {len(content):,} bytes; delete it and fetch the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    images = records[:, kind.label_bytes :].reshape(-1, 3, 32, 32)
    return images, records[:, kind.label_bytes - 1]


def _concatenated(parts: list[Arrays]) -> Arrays:
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
