"""Which image files of a folder are which split and class.

::

    DATA_DIR/train/CLASS/*.jpg       or training/
    DATA_DIR/test/CLASS/*.jpg        or testing/, val/, valid/, validation/; in any case

Classes are numbered in the order of their names and images ordered by class and name, as in
torchvision's ImageFolder, so that an image has the same position in both. The test split is the
first folder of these names that has class folders: a flat one, or one of a single folder that is no
class, has no labels. It may lack images of some classes. If there are only class folders, every
fifth image of each class, from the first on, is a test image. Hidden files and folders are ignored;
linked folders are followed.
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

from drf_fast.errors import InputError
from drf_fast.runtime.files import explained
from drf_fast.runtime.progress import say

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")

_VALIDATION = ("val", "valid", "validation")
TEST_NAMES = {
    "imagefolder": ("test", *_VALIDATION, "testing"),
    "imagenet": (*_VALIDATION, "test", "testing"),
}
NAMES: tuple[str, ...] = tuple(TEST_NAMES)
_TRAIN_NAMES = ("train", "training")
_SPLIT_WORD = re.compile(
    r"(.*[^a-z])?(train|test|val|valid|validation|training|testing)(s|sets?|data|images)?([^a-z]|$)"
)
_TEST_EVERY = 5


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


@dataclass(frozen=True)
class _Splits:
    """The folders of the splits, None where there is none; ``unlabelled``: without classes."""

    train: Path | None
    test: Path | None
    unlabelled: tuple[Path, ...]

    @property
    def folders(self) -> list[Path]:
        return [root for root in (self.train, self.test, *self.unlabelled) if root is not None]


def list_split(data_dir: Path, split: str, test_names: Sequence[str]) -> Listing:
    """Find the files of one split.

    Args:
        data_dir: the folder.
        split: ``"train"`` or ``"test"``.
        test_names: names of the test split's folder; the first that has class folders is taken.

    Raises:
        InputError: a folder is missing or holds no class folders, a class is in the test split
            only, or has no training images.
    """
    layout = (
        f"train/ and {' or '.join(f'{name}/' for name in test_names[:2])} with a folder a class"
    )
    if not data_dir.is_dir():
        what = "a file" if data_dir.exists() else "nothing there"
        raise InputError(
            f"cannot read {data_dir}: expected a folder with {layout}, got {what}; check --data-dir"
        )
    splits = _find_splits(data_dir, test_names)
    root = splits.train if split == "train" else splits.test
    if root is not None:
        classes = _classes_of(splits, root, data_dir)
        files = {name: _images(root / name, root) for name in classes}
        (_refuse_empty if split == "train" else _say_empty)(root, files)
        listing = _listing(root, files)
    elif splits.folders:
        raise _no_split(data_dir, split, layout, splits)
    else:
        _refuse_splits_as_classes(data_dir, layout)
        listing = _listing(data_dir, _divided(data_dir, split))
    _say_text_order(data_dir, listing.class_names)
    return listing


def walk_training_files(data_dir: Path, test_names: Sequence[str]) -> Iterator[Path]:
    """The files of the training split, else of the test split, else of all class folders.

    A training split without class folders is none. One class folder is listed at a time, so that
    the first files of many are found fast.
    """
    splits = _find_splits(data_dir, test_names)
    train = splits.train if splits.train is not None and _folders(splits.train) else None
    root = train or splits.test or data_dir
    for name in _folders(root):
        yield from (root / file for file in _images(root / name, root))


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
    names = (*_TRAIN_NAMES, *TEST_NAMES["imagefolder"])
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


def _find_splits(data_dir: Path, test_names: Sequence[str]) -> _Splits:
    train = next(_split_folders(data_dir, _TRAIN_NAMES), None)
    classes = set(_folders(train)) if train is not None else set()
    unlabelled = []
    for root in _split_folders(data_dir, test_names):
        found = _folders(root)
        if len(found) > 1 or (found and classes.issuperset(found)):
            if unlabelled:
                _say_unlabelled(unlabelled[0], root)
            return _Splits(train, root, tuple(unlabelled))
        unlabelled.append(root)
    return _Splits(train, None, tuple(unlabelled))


def _split_folders(data_dir: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folders of these names, compared ignoring case, in the order of the names."""
    existing = _folders(data_dir)
    for name in names:
        found = [folder for folder in existing if folder.lower() == name]
        if len(found) > 1:
            raise InputError(
                f"{data_dir} has the folders {' and '.join(found)}: expected one of them; rename "
                "the other"
            )
        if found:
            yield data_dir / found[0]


def _classes_of(splits: _Splits, root: Path, data_dir: Path) -> list[str]:
    """The classes of a split: the training split has a folder of every class."""
    train = [] if splits.train is None else _folders(splits.train)
    test = [] if splits.test is None else _folders(splits.test)
    if train and (unknown := set(test) - set(train)):
        raise InputError(
            f"{data_dir} has the class {min(unknown)!r} in {splits.test} only: expected its folder "
            f"in {splits.train} too; add or remove it"
        )
    if root == splits.test and len(train) > 1:
        return train
    return _classes(root)


def _no_split(data_dir: Path, split: str, layout: str, splits: _Splits) -> InputError:
    got = [_unlabelled(root) for root in splits.unlabelled] or [f"only {splits.folders[0].name}/"]
    fix = "sort its images into a folder a class" if splits.unlabelled else "add the other folder"
    if split == "test" and splits.train is not None:
        fix += (
            f", or pass --data-dir {splits.train}: every {_TEST_EVERY}th image of a class is then "
            "for tests"
        )
    return InputError(
        f"{data_dir} has no {split} images: expected {layout}, got {' and '.join(got)}; {fix}"
    )


def _unlabelled(root: Path) -> str:
    found = _folders(root)
    without = f"no class folder but {found[0]}/" if found else "no class folders"
    return f"{root.name}/ with {without}, hence without labels"


def _divided(data_dir: Path, split: str) -> dict[str, list[str]]:
    """The files of each class that belong to the split, where there are only class folders."""
    files = {name: _images(data_dir / name, data_dir) for name in _classes(data_dir)}
    _refuse_empty(data_dir, files)
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
    return parts


def _refuse_empty(root: Path, files: dict[str, list[str]]) -> None:
    empty = next((name for name, found in files.items() if not found), None)
    if empty is not None:
        raise InputError(
            f"the class folder {root / empty} holds no images: expected files "
            f"{', '.join(SUFFIXES)}; add images or remove the folder"
        )


def _say_empty(root: Path, files: dict[str, list[str]]) -> None:
    """Classes without test images stay classes: a part of a test split has the labels of all."""
    empty = [name for name, found in files.items() if not found]
    if len(empty) == len(files):
        raise InputError(
            f"the class folders in {root} hold no images: expected files {', '.join(SUFFIXES)}; "
            "add images"
        )
    if empty:
        say_once(
            f"{root} has no images of {len(empty):,} of its {len(files):,} classes, such as "
            f"{empty[0]!r}: the labels of the others are as if it had"
        )


def _say_division(data_dir: Path) -> None:
    say_once(
        f"{data_dir} has no train/ and test/: every {_TEST_EVERY}th image of a class is for tests"
    )


def _say_unlabelled(skipped: Path, taken: Path) -> None:
    say_once(
        f"{skipped} has no class folders, so what it holds is unlabelled: the test images are "
        f"those of {taken}"
    )


def _say_text_order(data_dir: Path, classes: Sequence[str]) -> None:
    """Say that "10" is before "2", where a network may have been trained on the numbers."""
    if not all(name.isdecimal() for name in classes):
        return
    by_number = sorted(classes, key=int)
    moved = next(
        (name for name, other in zip(by_number, classes, strict=True) if name != other), None
    )
    if moved is not None:
        say_once(
            f"the classes in {data_dir} are in the order of their names as text, as torchvision "
            f"has them: {moved!r} is class {classes.index(moved)}, and would be class "
            f"{by_number.index(moved)} by its number; for the order of numbers, name them with "
            "equally many digits (00, 01, ...)"
        )


@functools.cache  # a command reads both splits, and some of them twice
def say_once(sentence: str) -> None:
    """Say a sentence about a folder, once in a process."""
    say(sentence)


def _listing(root: Path, files: dict[str, list[str]]) -> Listing:
    counts = [len(found) for found in files.values()]
    names = tuple(file for found in files.values() for file in found)
    return Listing(
        root, tuple(files), names, np.repeat(np.arange(len(files), dtype=np.int64), counts)
    )


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
        got, fix = "", ""
        if _holds_image(root):
            got, fix = (
                ", got images beside them",
                "move each image into the folder of its class, or ",
            )
        raise InputError(
            f"{root} has {len(classes)} class folders: expected two or more, each with images of "
            f"one class{got}; {fix}check --data-dir"
        )
    return classes


def _holds_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    except OSError:
        return False


def _images(folder: Path, root: Path) -> list[str]:
    """The image files of a class, including those in subfolders, as paths relative to ``root``."""
    found = []
    for place, files in sorted(_walk(folder, frozenset())) if folder.is_dir() else ():
        subfolder = Path(place).relative_to(root)
        if not any(part.startswith(".") for part in subfolder.parts):
            found += [
                (subfolder / file).as_posix()
                for file in sorted(files)
                if file.lower().endswith(SUFFIXES) and not file.startswith(".")
            ]
    return found


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
