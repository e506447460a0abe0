"""Reading the images of class folders: into memory, or from their files on demand.

Images have one channel if every training file is grey (``image_files.is_grey``), else three: a grey
value that is copied to three channels would get its own noise in each, and its distances would grow
by sqrt(3).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drf_fast.data import folders
from drf_fast.data.folders import TEST_NAMES, say_once
from drf_fast.data.image_files import ImageFiles, decode, is_grey
from drf_fast.errors import InputError

_MAX_BYTES_IN_MEMORY = 2 * 2**30  # bytes of pixels


def read_folder(
    name: str, split: str, data_dir: Path | None, limit: int | None, channels: int | None
) -> tuple[Tensor | ImageFiles, Tensor, tuple[str, ...]]:
    """The images of one split, their labels and the names of the classes.

    ``"imagefolder"`` takes images of one size and decodes them into memory (above 2 GiB, on demand
    instead); ``"imagenet"`` resizes images of any size to 224 x 224, on demand.

    Args:
        name: one of ``folders.NAMES``.
        split: ``"train"`` or ``"test"``.
        data_dir: the folder.
        limit: take only so many images, evenly spaced, since neighbours are of the same class.
        channels: C, 1 or 3; any other and ``None`` take 1 if every training image is grey, else 3.

    Raises:
        InputError: a folder is missing, a class is empty or in the test split only, an image is
            damaged, of another size or has colours where one channel is wanted; names it.
    """
    if data_dir is None:
        raise InputError(
            f"--data {name} needs the folder of its images: expected --data-dir FOLDER with "
            f"train/CLASS/*.jpg and {TEST_NAMES[name][0]}/CLASS/*.jpg, got none; pass it"
        )
    data_dir = data_dir.absolute()  # of which a sentence is said once, however it is spelled
    listing = folders.list_split(data_dir, split, TEST_NAMES[name])
    count = len(listing.names)
    picked = np.arange(count)
    if limit is not None and limit < count:
        picked = np.arange(limit) * count // limit
    files = [listing.names[index] for index in picked]
    labels = torch.from_numpy(listing.labels[picked])
    if channels not in (1, 3):
        channels = _channels(data_dir, TEST_NAMES[name])
    size = None
    if name == "imagefolder":
        first = decode(listing.root / files[0], channels)
        size = (first.height, first.width)
    images = ImageFiles(listing.root, files, size, channels)
    if size is not None and images.shape.numel() <= _MAX_BYTES_IN_MEMORY:
        images = _decoded(images)
    if channels == 3 and _are_copies(images):
        _say_copied(data_dir, split, TEST_NAMES[name])
    return images, labels, listing.class_names


def _are_copies(images: Tensor | ImageFiles) -> bool:
    """Whether the three channels are equal: by the pixels in memory, or what the files hold."""
    if isinstance(images, ImageFiles):
        return all(is_grey(images.root / name) for name in images.names)
    return all(torch.equal(images[:, 0], images[:, other]) for other in (1, 2))


def _channels(data_dir: Path, test_names: tuple[str, ...]) -> int:
    """1, with a sentence, if there are training images and every one is grey, else 3."""
    if not _trains_on_grey(data_dir, test_names):
        return 3
    say_once(
        f"the images in {data_dir} are grey and read with one channel (a network of three takes "
        "them by x.expand(-1, 3, -1, -1) inside it)"
    )
    return 1


def _trains_on_grey(data_dir: Path, test_names: tuple[str, ...]) -> bool:
    grey = map(is_grey, folders.walk_training_files(data_dir, test_names))
    return next(grey, False) and all(grey)


def _say_copied(data_dir: Path, split: str, test_names: tuple[str, ...]) -> None:
    """Say that channels are equal, and the remedy, unless colours of other images need three."""
    remedy = " (files with one channel are read with one, but by a network of three)"
    if split == "test" and not _trains_on_grey(data_dir, test_names):
        remedy = ""
    what = "training" if split == "train" else "test"
    say_once(
        f"the {what} images in {data_dir} are grey but read with three equal channels, and each "
        f"gets its own noise: a certified radius is sqrt(3) times that in grey values{remedy}"
    )


def _decoded(images: ImageFiles) -> Tensor:
    result = torch.empty(tuple(images.shape), dtype=torch.uint8, device="cpu")
    chunks = torch.arange(len(images), device="cpu").split(256)
    for ids, batch in zip(chunks, images.stream(chunks), strict=True):
        result[ids] = batch
    return result
