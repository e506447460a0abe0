"""MNIST and Fashion-MNIST from the four IDX files, and the embedded MNIST subset."""

from __future__ import annotations

import zipfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np

from drf_fast.data.download import ALLOW, fetch
from drf_fast.data.folders import refuse_class_folders
from drf_fast.data.idx import read_idx
from drf_fast.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, ...) uint8 and labels (N,) uint8

_STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MINI = "mnist_mini.npz"


def read_mini(split: str) -> Arrays:
    """Read the embedded subset (``make_mnist_mini`` states the rule that picked it)."""
    try:
        with (
            (resources.files("drf_fast") / "data" / _MINI).open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            return archive[f"{split}_images"], archive[f"{split}_labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"the embedded data set {_MINI} is missing or damaged ({error}): expected the file "
            "that comes with the package; install drf_fast again"
        ) from error


def read_mnist(folder: str, split: str, data_dir: Path, download: bool) -> Arrays:
    """Read one split of an MNIST-like data set.

    The files may be unpacked or gzip and lie in ``data_dir/folder/raw`` (as torchvision stores
    them), ``data_dir/folder``, ``data_dir/raw`` or ``data_dir``. If both forms are there the gzip
    file is read, because it carries a checksum.

    Args:
        folder: ``"MNIST"`` or ``"FashionMNIST"``: the name of torchvision's class and folder.
        split: ``"train"`` or ``"test"``.
        data_dir: where to look.
        download: fetch missing files through torchvision into ``data_dir/folder/raw``.

    Raises:
        InputError: files are missing, damaged or do not fit together, or cannot be fetched.
        OSError: the disk is full.
    """
    found = _locate(folder, split, data_dir)
    if found is None:
        refuse_class_folders(folder, data_dir)
    if found is None and download:
        _download(folder, data_dir)
        found = _locate(folder, split, data_dir)
    if found is None:
        wanted = " and ".join(f"{stem}[.gz]" for stem in _STEMS[split])
        places = ", ".join(str(place) for place in _places(folder, data_dir))
        raise InputError(
            f"the {split} files of {folder} are missing: expected {wanted} in one of {places}; "
            f"point --data-dir at the folder that holds them, or {ALLOW}"
        )
    images, labels = read_idx(found[0], 3), read_idx(found[1], 1)
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise InputError(
            f"{found[0]} does not hold {folder}: expected one or more images of 28 x 28 pixels, "
            f"got an array of {' x '.join(map(str, images.shape))}; delete it and fetch it again"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{found[0]} and {found[1]} do not fit together: expected one label an image, got "
            f"{len(labels)} labels for {len(images)} images; delete both and fetch them again"
        )
    if labels.max() > 9:
        raise InputError(
            f"{found[1]} is damaged: expected labels from 0 to 9, got {labels.max()}; "
            "delete it and fetch it again"
        )
    return images, labels


def _places(folder: str, data_dir: Path) -> list[Path]:
    return [data_dir / folder / "raw", data_dir / folder, data_dir / "raw", data_dir]


def _locate(folder: str, split: str, data_dir: Path) -> tuple[Path, Path] | None:
    for place in _places(folder, data_dir):
        images, labels = (
            next((f for f in (place / f"{stem}.gz", place / stem) if f.is_file()), None)
            for stem in _STEMS[split]
        )
        if images is not None and labels is not None:
            return images, labels
    return None


def _download(folder: str, data_dir: Path) -> None:
    """Fetch the files with torchvision (its mirrors, its checksums) into ``data_dir``."""

    def get(scratch: str) -> Path:
        from torchvision import datasets

        getattr(datasets, folder)(scratch, download=True)
        return Path(scratch, folder, "raw")

    names = [f"{stem}.gz" for stems in _STEMS.values() for stem in stems]
    fetch(folder, data_dir, data_dir / folder / "raw", names, get)
