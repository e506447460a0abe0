"""CIFAR-10 from its published binary version: records of a label and 3,072 pixels.

The better known Python version is pickled, and reading a pickle runs whatever code is in it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from drf_fast.data.download import fetch
from drf_fast.data.idx import read_bytes
from drf_fast.data.mnist import Arrays
from drf_fast.errors import InputError

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published beside the archive
_ARCHIVE = "cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"  # inside the archive
_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
_RECORD = 1 + 3 * 32 * 32
_RECORDS = 10_000  # in each file


def read_cifar10(split: str, data_dir: Path, download: bool) -> Arrays:
    """Read one split.

    The unpacked files may lie in ``data_dir/cifar-10-batches-bin`` or ``data_dir``; otherwise the
    archive ``data_dir/cifar-10-binary.tar.gz`` is read as it is, once its MD5 is the published one.

    Args:
        split: ``"train"`` or ``"test"``.
        data_dir: where to look.
        download: fetch a missing archive into ``data_dir``.

    Returns:
        images (N, 3, 32, 32) uint8 and labels (N,) uint8.

    Raises:
        InputError: files are missing, damaged or of the Python version, or cannot be fetched.
        OSError: the disk is full.
    """
    for folder in (data_dir / _FOLDER, data_dir):
        paths = [folder / name for name in _FILES[split]]
        if all(path.is_file() for path in paths):
            return _joined([_records(read_bytes(path), path) for path in paths])
    archive = data_dir / _ARCHIVE
    if not archive.is_file():
        if not download:
            raise InputError(_missing(split, data_dir))
        try:
            _download(data_dir)
        except InputError as error:
            if _pickled(data_dir) is None:
                raise
            raise InputError(_missing(split, data_dir)) from error
    return _joined(_unpacked(archive, split))


def _pickled(data_dir: Path) -> Path | None:
    return next((path for path in map(data_dir.joinpath, _PICKLED) if path.exists()), None)


def _missing(split: str, data_dir: Path) -> str:
    pickled = _pickled(data_dir)
    found = f"the {split} files of CIFAR-10 are missing"
    if pickled is not None:
        found = (
            f"{pickled} is the Python version of CIFAR-10, which is pickled: reading it could run "
            "code, and drf_fast does not"
        )
    return (
        f"{found}: expected the binary version, {_ARCHIVE} or the folder {_FOLDER} unpacked from "
        f"it, in {data_dir}; fetch it from {_URL}, or name its folder with --data-dir"
    )


def _download(data_dir: Path) -> None:
    def get(scratch: str) -> Path:
        from torchvision.datasets.utils import download_url

        download_url(_URL, scratch, _ARCHIVE, md5=_MD5)
        return Path(scratch)

    fetch("CIFAR-10", data_dir, data_dir, [_ARCHIVE], get)


def _unpacked(archive: Path, split: str) -> list[Arrays]:
    """The files of a split out of the archive; nothing is written."""
    repair = "delete it and fetch it again"
    content = read_bytes(archive)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MD5:
        raise InputError(
            f"{archive} is damaged or another file: expected the MD5 {_MD5}, got {found}; {repair}"
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            result = []
            for name in _FILES[split]:
                member = tar.extractfile(f"{_FOLDER}/{name}")
                assert member is not None  # the checksum was right
                result.append(_records(member.read(), archive / _FOLDER / name))
            return result
    except (tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as error:
        raise InputError(f"cannot unpack {archive}: got '{error}'; {repair}") from error


def _records(content: bytes, path: Path) -> Arrays:
    repair = "delete it and fetch the archive again"
    if len(content) != _RECORDS * _RECORD:
        raise InputError(
            f"{path} is damaged: expected {_RECORDS:,} records of {_RECORD} bytes, together "
            f"{_RECORDS * _RECORD:,}, got {len(content):,} bytes; {repair}"
        )
    records = np.frombuffer(content, np.uint8).reshape(_RECORDS, _RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        raise InputError(
            f"{path} is damaged: expected labels from 0 to 9, got {labels.max()}; {repair}"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _joined(parts: list[Arrays]) -> Arrays:
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
