"""The data sets by name. To add one, write a reader and add it to ``_SOURCES``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from drf_fast.config.choices import Split
from drf_fast.data import arrays, folders
from drf_fast.data.cifar import read_cifar
from drf_fast.data.dataset import Dataset, fingerprint
from drf_fast.data.image_folders import read_folder
from drf_fast.data.mnist import read_mini, read_mnist
from drf_fast.data.svhn import read_svhn
from drf_fast.errors import InputError
from drf_fast.runtime.progress import say


@dataclass(frozen=True)
class _Source:
    """How to read a data set.

    ``read(split, data_dir, download)`` returns images, (N, H, W) or (N, C, H, W) uint8, and
    labels, (N,) integers. ``published`` maps a split to the fingerprint of the published data, to
    distinguish data sets whose files have the same names.
    """

    class_names: tuple[str, ...]
    read: Callable[[str, Path, bool], tuple[np.ndarray, np.ndarray]]
    published: dict[str, str]


_DIGITS = tuple("0123456789")
_MNIST_SIZES = {"train": 60_000, "test": 10_000}  # images of MNIST and of sets made like it
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_SOURCES = {
    "mnist-mini": _Source(
        _DIGITS,
        lambda split, data_dir, download: read_mini(split),
        {},
    ),
    "mnist": _Source(
        _DIGITS,
        lambda split, data_dir, download: read_mnist("MNIST", split, data_dir, download),
        {
            "train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
            "test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
        },
    ),
    "fashion-mnist": _Source(
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        lambda split, data_dir, download: read_mnist("FashionMNIST", split, data_dir, download),
        {},
    ),
    "cifar10": _Source(_CIFAR10, partial(read_cifar, "cifar10"), {}),
    "cifar100": _Source(tuple(_CIFAR100.split()), partial(read_cifar, "cifar100"), {}),
    "svhn": _Source(_DIGITS, read_svhn, {}),
}

OWN: tuple[str, ...] = (*folders.NAMES, arrays.NAME)  # of the user's own images
NAMES: tuple[str, ...] = (*_SOURCES, *OWN)


def default_data_dir() -> Path:
    """``$DRF_FAST_DATA``, or ``~/.cache/drf_fast/data``."""
    return Path(os.path.expanduser(os.environ.get("DRF_FAST_DATA") or "~/.cache/drf_fast/data"))


def load(
    name: str,
    split: str,
    *,
    data_dir: Path | None = None,
    download: bool = True,
    limit: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Load one split of a data set, into memory unless its images stay in their files.

    Args:
        name: one of ``NAMES``.
        split: ``"train"`` or ``"test"``.
        data_dir: the folder of the files or of the download; ``default_data_dir()`` if ``None``,
            but folders of images (``drf_fast.data.folders``) and the file of arrays
            (``drf_fast.data.arrays``) must be given.
        download: download missing files.
        limit: keep only the first ``limit`` images, of folders evenly spaced ones; all if there are
            fewer.
        channels: of images in class folders: C, 1 or 3, as the network takes them; ``None`` takes 1
            if every training image is grey, else 3. Other data sets have their own.
        num_classes: of an .npz file: K of the network, where its labels are of fewer classes; their
            names are their numbers. Other data sets have their own.

    Returns:
        The data; images (N, C, H, W) uint8, labels (N,) int64.

    Raises:
        InputError: unknown name or split, a limit below 1, files missing, damaged or of another
            data set, no network, a folder that cannot be written.
        OSError: the disk is full.
    """
    if name not in NAMES:
        raise _unknown(name)
    if split not in get_args(Split):
        raise InputError(f"unknown split '{split}': expected train or test")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 image, got {limit}")
    folder = default_data_dir() if data_dir is None else Path(os.path.expanduser(data_dir))
    if name in folders.NAMES:
        where = None if data_dir is None else folder
        images, labels, class_names = read_folder(name, split, where, limit, channels)
        found = fingerprint(images, labels)
        return Dataset(images, labels, len(class_names), name, split, class_names, found)
    if name == arrays.NAME:
        where = None if data_dir is None else folder
        found, labels, classes = arrays.read_arrays(split, where, num_classes)
        class_names = tuple(map(str, range(classes)))
        return _dataset(found[:limit], labels[:limit], name, split, class_names)
    source = _SOURCES[name]
    if str(folder).startswith("~") and name != "mnist-mini":
        raise InputError(
            f"the images of {name} need a folder: expected a home folder (HOME) for {folder}, got "
            "none; pass --data-dir, or name one in DRF_FAST_DATA"
        )
    image_array, label_array = source.read(split, folder, download)
    whole = _dataset(image_array, label_array, name, split, source.class_names)
    _refuse_confusion(name, folder, whole.fingerprint)
    _warn_of_others(name, split, folder, whole.fingerprint, len(whole))
    if limit is None or limit >= len(whole):
        return whole
    return _dataset(image_array[:limit], label_array[:limit], name, split, source.class_names)


def _dataset(
    image_array: np.ndarray,
    label_array: np.ndarray,
    name: str,
    split: str,
    class_names: tuple[str, ...],
) -> Dataset:
    """The data set of images (N, H, W) or (N, C, H, W) uint8 and labels (N,) integers."""
    images = torch.from_numpy(image_array)
    images = images.unsqueeze(1) if images.dim() == 3 else images
    labels = torch.from_numpy(label_array.astype(np.int64))
    found = fingerprint(images, labels)
    return Dataset(images, labels, len(class_names), name, split, class_names, found)


def _unknown(name: str) -> InputError:
    folder = name if Path(name).is_dir() else "FOLDER"
    file = name if name.lower().endswith(".npz") else "FILE.npz"
    return InputError(
        f"unknown data set '{name}': expected one of {', '.join(NAMES)}; for images of your own "
        f"pass --data imagefolder --data-dir {folder}, or for arrays --data npz --data-dir {file} "
        "(in Python, drf_fast.certify_dataset takes a torch Dataset)"
    )


@functools.cache  # a command may read a split twice
def _warn_of_others(name: str, split: str, folder: Path, found: str, count: int) -> None:
    """Warn of a file as large as the published one that is not it, Fashion-MNIST as MNIST."""
    if _SOURCES[name].published.get(split, found) != found and count == _MNIST_SIZES[split]:
        say(
            f"warning: {folder} holds {count:,} {split} images that are not the published ones of "
            f"{name}; files of other data sets, such as fashion-mnist, have the same names"
        )


def _refuse_confusion(name: str, folder: Path, found: str) -> None:
    """Refuse the files of another data set: those of MNIST and Fashion-MNIST have equal names."""
    for other, source in _SOURCES.items():
        if other != name and found in source.published.values():
            raise InputError(
                f"{folder} holds {other}: expected {name}; choose --data {other} or the folder "
                f"of {name}"
            )
