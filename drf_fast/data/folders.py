"""Folders of image files: one folder per class, inside one folder per split.

::

    DATA_DIR/train/CLASS/*.jpg       or training/
    DATA_DIR/test/CLASS/*.jpg        or testing/, val/, valid/, validation/; in any case

Classes are numbered in the order of their names and images ordered by class and name, as in
torchvision's ImageFolder, so that an image has the same position in both. If there are only class
folders, every fifth image of each class, from the first on, is a test image. Hidden files and
folders are ignored; linked folders are followed.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drf_fast.data.image_files import ImageFiles, decode
from drf_fast.errors import InputError
from drf_fast.runtime.files import explained
from drf_fast.runtime.progress import say

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")

_VALIDATION = ("val", "valid", "validation")
_TEST_NAMES = {
    "imagefolder": ("test", *_VALIDATION, "testing"),
    "imagenet": (*_VALIDATION, "test", "testing"),
}
_TRAIN_NAMES = ("train", "training")
_SPLIT_WORD = re.compile(
    r"(.*[^a-z])?(train|test|val|valid|validation|training|testing)(s|sets?|data|images)?([^a-z]|$)"
)
NAMES: tuple[str, ...] = tuple(_TEST_NAMES)
_TEST_EVERY = 5
_MAX_BYTES_IN_MEMORY = 2 * 2**30  # bytes of pixels


@dataclass(frozen=True)
class Listing:
    """The files of one split.

    Attributes:
        root: the folder.
        class_names: names of the classes.
        names: paths of the files below ``root``.
        labels: (N,) int64.
    """

    root: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray


def read_folder(
    name: str, split: str, data_dir: Path | None, limit: int | None
) -> tuple[Tensor | ImageFiles, Tensor, tuple[str, ...]]:
    """The images of one split, their labels and the names of the classes.

    ``"imagefolder"`` takes images of one size and decodes them into memory (above 2 GiB, on demand
    instead); ``"imagenet"`` resizes images of any size to 224 x 224, on demand.

    Args:
        name: one of ``NAMES``.
        split: ``"train"`` or ``"test"``.
        data_dir: the folder.
        limit: take only so many images, evenly spaced, since neighbours are of the same class.

    Raises:
        InputError: a folder is missing, a class is empty or in one split only, an image is damaged
            or of another size; names it.
    """
    if data_dir is None:
        raise InputError(
            f"--data {name} needs the folder of its images: expected --data-dir FOLDER with "
            f"train/CLASS/*.jpg and {_TEST_NAMES[name][0]}/CLASS/*.jpg, got none; pass it"
        )
    listing = list_split(data_dir, split, _TEST_NAMES[name])
    count = len(listing.names)
    picked = np.arange(count)
    if limit is not None and limit < count:
        picked = np.arange(limit) * count // limit
    files = [listing.names[index] for index in picked]
    labels = torch.from_numpy(listing.labels[picked])
    if name == "imagenet":
        return ImageFiles(listing.root, files, None), labels, listing.class_names
    first = decode(listing.root / files[0])
    images = ImageFiles(listing.root, files, (first.height, first.width))
    if images.shape.numel() > _MAX_BYTES_IN_MEMORY:
        return images, labels, listing.class_names
    return _decoded(images), labels, listing.class_names


def refuse_class_folders(what: str, data_dir: Path) -> None:
    """Raise if a folder without the files of a published data set has folders of images instead.

    Args:
        what: the data set, for the message.
        data_dir: the user's folder.

    Raises:
        InputError: two folders or more hold images, inside train/ or test/ or in ``data_dir``.
    """
    if not data_dir.is_dir():
        return
    names = (*_TRAIN_NAMES, *_TEST_NAMES["imagefolder"])
    splits = [data_dir / name for name in _folders(data_dir) if name.lower() in names]
    for root in splits or [data_dir]:
        with_images = (name for name in _folders(root) if _holds_image(root / name))
        found = list(itertools.islice(with_images, 2))
        if len(found) == 2:
            raise InputError(
                f"{data_dir} holds class folders of image files, such as "
                f"{(root / found[0]).relative_to(data_dir)}: expected the published files of "
                f"{what}; use --data imagefolder for these, or name another --data-dir"
            )


def _holds_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    except OSError:
        return False


def _decoded(images: ImageFiles) -> Tensor:
    result = torch.empty(tuple(images.shape), dtype=torch.uint8, device="cpu")
    chunks = torch.arange(len(images), device="cpu").split(256)
    for ids, batch in zip(chunks, images.stream(chunks), strict=True):
        result[ids] = batch
    return result


def list_split(data_dir: Path, split: str, test_names: Sequence[str]) -> Listing:
    """Find the files of one split.

    Args:
        data_dir: the folder.
        split: ``"train"`` or ``"test"``.
        test_names: names of the test split's folder; the first that exists is taken.

    Raises:
        InputError: as ``read_folder``.
    """
    layout = (
        f"train/ and {' or '.join(f'{name}/' for name in test_names[:2])} with a folder a class"
    )
    if not data_dir.is_dir():
        what = "a file" if data_dir.exists() else "nothing there"
        raise InputError(
            f"cannot read {data_dir}: expected a folder with {layout}, got {what}; check --data-dir"
        )
    roots = {
        "train": _find_split_folder(data_dir, _TRAIN_NAMES),
        "test": _find_split_folder(data_dir, test_names),
    }
    root = roots[split]
    if root is not None:
        classes = _classes(root)
        for other in roots.values():
            if other is not None and (difference := set(classes) ^ set(_folders(other))):
                raise InputError(
                    f"{data_dir} has the class {min(difference)!r} in one of "
                    f"{roots['train']} and {roots['test']} only: expected the same class folders "
                    "in both; add or remove it"
                )
        return _listing(root, {name: _images(root, name) for name in classes})
    if any(roots.values()):
        raise InputError(
            f"{data_dir} has no {split} images: expected {layout}, got only "
            f"{next(filter(None, roots.values())).name}/; add the other folder"
        )
    _refuse_splits_as_classes(data_dir, layout)
    files = {name: _images(data_dir, name) for name in _classes(data_dir)}
    if split == "test":
        parts = {name: found[::_TEST_EVERY] for name, found in files.items()}
    else:
        parts = {
            name: [file for i, file in enumerate(found) if i % _TEST_EVERY]
            for name, found in files.items()
        }
    for name, found in parts.items():
        if not found:
            raise InputError(
                f"{data_dir / name} holds one image: expected two or more, one to train and one to "
                "test; add images, or make folders train/ and test/"
            )
    _say_division(data_dir)
    return _listing(data_dir, parts)


@functools.cache  # a command reads both splits
def _say_division(data_dir: Path) -> None:
    say(f"{data_dir} has no train/ and test/: every {_TEST_EVERY}th image of a class is for tests")


def _listing(root: Path, files: dict[str, list[str]]) -> Listing:
    counts = [len(found) for found in files.values()]
    names = tuple(file for found in files.values() for file in found)
    return Listing(
        root, tuple(files), names, np.repeat(np.arange(len(files), dtype=np.int64), counts)
    )


def _find_split_folder(data_dir: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split, whose name is compared ignoring case; None if there is none."""
    existing = _folders(data_dir)
    for name in names:
        found = [folder for folder in existing if folder.lower() == name]
        if len(found) > 1:
            raise InputError(
                f"{data_dir} has the folders {' and '.join(found)}: expected one of them; rename "
                "the other"
            )
        if found:
            return data_dir / found[0]
    return None


def _refuse_splits_as_classes(data_dir: Path, layout: str) -> None:
    """Raise if class folders look like splits under other names, such as "Train set"."""
    looks = [name for name in _folders(data_dir) if _SPLIT_WORD.match(name.lower())]
    if len(looks) > 1:
        raise InputError(
            f"{data_dir} has the folders {', '.join(looks[:3])}, which look like splits and not "
            f"like classes: expected {layout}; rename them"
        )


def _folders(root: Path) -> list[str]:
    with explained("read", root, "a readable folder", "check its permissions"):
        entries = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    return sorted(name for name in entries if not name.startswith("."))


def _classes(root: Path) -> list[str]:
    classes = _folders(root)
    if len(classes) < 2:
        raise InputError(
            f"{root} has {len(classes)} class folders: expected two or more, each with images of "
            "one class; check --data-dir"
        )
    return classes


def _walk(folder: Path, above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files) of a folder and all folders in it, following links but not cycles."""
    real_path = os.path.realpath(folder)
    if real_path in above:
        return
    entries = list(os.scandir(folder))
    yield str(folder), [entry.name for entry in entries if not entry.is_dir()]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {real_path})


def _images(root: Path, class_name: str) -> list[str]:
    """The image files of a class, including those in subfolders, as paths relative to ``root``."""
    found = []
    for folder, files in sorted(_walk(root / class_name, frozenset())):
        subfolder = Path(folder).relative_to(root)
        if not any(part.startswith(".") for part in subfolder.parts):
            found += [
                (subfolder / file).as_posix()
                for file in sorted(files)
                if file.lower().endswith(SUFFIXES) and not file.startswith(".")
            ]
    if not found:
        raise InputError(
            f"the class folder {root / class_name} holds no images: expected files "
            f"{', '.join(SUFFIXES)}; add images or remove the folder"
        )
    return found
