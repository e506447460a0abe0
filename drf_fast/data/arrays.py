"""Images and labels of one's own in an .npz file, under the names of Keras or of MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drf_fast.errors import InputError
from drf_fast.runtime.files import is_regular

NAME = "npz"
_NAMES = {  # of images and labels
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
_CHANNELS = (1, 3)
_MOST_CLASSES = 100_000


def read_arrays(split: str, path: Path | None) -> tuple[np.ndarray, np.ndarray, int]:
    """The images of one split, their labels, and the number of classes in both splits.

    Args:
        split: ``"train"`` or ``"test"``.
        path: an .npz file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras has
            them, or ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, as
            MedMNIST has them; one split may be absent. Images are uint8, (N, H, W), (N, H, W, C) or
            (N, C, H, W), where one of the two places of C holds 1 or 3. Labels are integers from 0,
            (N,) or (N, 1).

    Returns:
        images (N, C, H, W) uint8; labels (N,) integers; the number of classes K, the largest label
        plus 1.

    Raises:
        InputError: no such file, without these arrays, or with others under their names.
    """
    if path is None:
        raise InputError(
            "--data npz needs the file of its arrays: expected --data-dir FILE.npz, got none; pass "
            "it"
        )
    if not is_regular(path):
        got = "a folder" if path.is_dir() else "something else" if path.exists() else "no such file"
        raise InputError(f"cannot read {path}: expected an .npz file, got {got}; check --data-dir")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(
                f"{path} holds one array: expected an .npz file of images and labels; save them "
                "with numpy.savez"
            )
        with loaded as archive:
            names = _names(archive.files, split, path)
            others = [labels for pairs in _NAMES.values() for _, labels in pairs]
            labels = {name: archive[name] for name in others if name in archive}
            images = archive[names[0]]
    except InputError:  # is a ValueError
        raise
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError,
            AttributeError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot read {path}: expected an .npz file of plain arrays, got '{reason}'; save them "
            "with numpy.savez"
        ) from error
    checked = {name: _checked_labels(found, name, path) for name, found in labels.items()}
    own, images = checked[names[1]], _channels_first(images, names[0], path)
    if len(images) != len(own):
        raise InputError(
            f"{path} has {len(images):,} images in {names[0]} and {len(own):,} labels in "
            f"{names[1]}: expected a label an image; save both anew"
        )
    num_classes = 1 + max(int(found.max()) for found in checked.values())
    if num_classes < 2:
        raise InputError(f"{path} has labels of one class: expected two or more; check {names[1]}")
    return images, own, num_classes


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
