"""Images and labels of one's own in an .npz file, under the names of Keras or of MedMNIST."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from drf_fast.errors import InputError
from drf_fast.runtime.files import is_regular

NAME = "npz"
_NAMES = {  # of images and labels
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
_ZIP_MARKS = (b"PK\3\4", b"PK\5\6")  # of archives with and without members
_CHANNELS = (1, 3)
_MOST_CLASSES = 100_000


def read_arrays(
    split: str, path: Path | None, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """The images of one split, their labels, and the number of classes.

    Args:
        split: ``"train"`` or ``"test"``.
        path: an .npz file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras has
            them, or ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, as
            MedMNIST has them; one split may be absent. Images are uint8, (N, H, W), (N, H, W, C) or
            (N, C, H, W), where one of the two places of C holds 1 or 3. Labels are integers from 0,
            (N,) or (N, 1).
        num_classes: of the network, if one is known: the file may lack images of its last classes.
            At most 100,000 are believed.

    Returns:
        images (N, C, H, W) uint8; labels (N,) integers; the number of classes K, the largest label
        of both splits plus 1, or ``num_classes`` if that is more; of test images at least 2.

    Raises:
        InputError: no such file, without these arrays, with others under their names, or training
            images of one class.
    """
    if path is None:
        raise InputError(
            "--data npz needs the file of its arrays: expected --data-dir FILE.npz, got none; pass "
            "it"
        )
    if not is_regular(path):
        got = "a folder" if path.is_dir() else "something else" if path.exists() else "no such file"
        raise InputError(f"cannot read {path}: expected an .npz file, got {got}; check --data-dir")
    names, labels, images = _read(split, path)
    checked = {name: _checked_labels(found, name, path) for name, found in labels.items()}
    own, images = checked[names[1]], _channels_first(images, names[0], path)
    if len(images) != len(own):
        raise InputError(
            f"{path} has {len(images):,} images in {names[0]} and {len(own):,} labels in "
            f"{names[1]}: expected a label an image; save both anew"
        )
    there = 1 + max(int(found.max()) for found in checked.values())
    if there < 2 and num_classes is None and split == "train":
        raise InputError(f"{path} has labels of one class: expected two or more; check {names[1]}")
    return images, own, max(there, min(num_classes or 2, _MOST_CLASSES))


def _read(split: str, path: Path) -> tuple[tuple[str, str], dict[str, np.ndarray], np.ndarray]:
    """(names of the images and labels, all labels in the file by name, the images)."""
    try:
        with path.open("rb") as file:
            _check_mark(file.read(6), path)
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            names = _names(list(members), split, path)
            all_labels = [name for pairs in _NAMES.values() for _, name in pairs]
            labels = {n: _array(archive, members[n]) for n in all_labels if n in members}
            return names, labels, _array(archive, members[names[0]])
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"cannot read {path}: expected arrays that fit in memory, got larger ones; save fewer "
            "images, or use --data imagefolder, which reads large sets from their files"
        ) from error
    except Exception as error:  # whatever the readers of zip and NPY raise for a damaged file
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise InputError(
            f"cannot read {path}: expected an .npz file of plain arrays, got '{reason}'; save them "
            "with numpy.savez"
        ) from error


def _check_mark(mark: bytes, path: Path) -> None:
    """Raise if the first bytes are not those of a zip archive, which an .npz file is."""
    if mark == npy.MAGIC_PREFIX:
        raise InputError(
            f"{path} holds one array: expected an .npz file of images and labels; save them with "
            "numpy.savez"
        )
    if mark[:4] not in _ZIP_MARKS:
        raise InputError(
            f"cannot read {path}: expected an .npz file of plain arrays, got no .npz file; save "
            "them with numpy.savez"
        )


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """The array in a member, read if the member is as large as its header says.

    A header may promise any shape, and memory for it is taken before the first byte is read.
    """
    with archive.open(member) as file:
        one = npy.read_magic(file) == (1, 0)
        header = npy.read_array_header_1_0 if one else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        promised = math.prod(shape) * dtype.itemsize
        held = archive.getinfo(member).file_size - file.tell()
    if promised > held and not dtype.hasobject:  # objects are pickled, and refused below
        raise ValueError(f"{held:,} bytes of {member}, whose header promises {promised:,}")
    with archive.open(member) as file:  # anew: a file that was wound back is read without checksum
        return npy.read_array(file, allow_pickle=False)


def _names(there: Sequence[str], split: str, path: Path) -> tuple[str, str]:
    found = next((pair for pair in _NAMES[split] if set(pair) <= set(there)), None)
    if found is None:
        wanted = ", or ".join(" and ".join(pair) for pair in _NAMES[split])
        got = ", ".join(there[:8]) or "none"
        raise InputError(
            f"{path} has no {split} images: expected the arrays {wanted}, got {got}; save them "
            "under these names"
        )
    return found


def _checked_labels(labels: np.ndarray, name: str, path: Path) -> np.ndarray:
    """(N,), of (N,) or (N, 1)."""
    shape = labels.shape
    if (
        labels.dtype.kind not in "iu"
        or not (len(shape) == 1 or shape[1:] == (1,))
        or not len(labels)
    ):
        raise InputError(
            f"{name} in {path} holds no labels: expected integers of shape (N,) or (N, 1), got "
            f"{labels.dtype} of shape {shape}; save the number of each image's class"
        )
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise InputError(
            f"{name} in {path} holds no labels: expected classes from 0 to at most "
            f"{_MOST_CLASSES - 1:,}, got {labels.min()} to {labels.max()}; number them from 0"
        )
    return labels.reshape(-1)


def _channels_first(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    """(N, C, H, W), where the shape leaves no doubt."""
    shape = images.shape
    grey = len(shape) == 3
    first, last = (len(shape) == 4 and shape[at] in _CHANNELS for at in (1, 3))
    if images.dtype != np.uint8 or 0 in shape or grey + first + last != 1:
        ambiguous = ", which can be read in two ways" if first and last else ""
        raise InputError(
            f"{name} in {path} holds no images: expected uint8 of shape (N, H, W), or (N, H, W, "
            f"C) or (N, C, H, W) with C of 1 or 3, got {images.dtype} of shape {shape}"
            f"{ambiguous}; save them in one of these forms"
        )
    if grey:
        return images[:, None]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if last else images
