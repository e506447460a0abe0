"""Images that are decoded from their files on demand: JPEG, PNG and other formats of Pillow."""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor

from drf_fast.data import augment
from drf_fast.errors import InputError
from drf_fast.runtime.files import is_regular

_GREY = {"1", "L", "LA"}
_EIGHT_BIT = _GREY | {"La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_SHORT_SIDE, _CROP = 256, 224  # pixels, as in the published ImageNet evaluation
_AHEAD = 2  # batches that are read ahead


class ImageFiles:
    """N image files with the indexing of a tensor (N, C, H, W) uint8.

    An image is decoded each time it is indexed, in threads (Pillow releases the GIL), so that only
    the indexed images are in memory and, in ``stream``, two batches ahead.

    Args:
        root: folder of the files.
        names: paths below ``root``.
        size: (H, W) that every image must have; ``None`` takes images of any size to 224 x 224:
            resized to a shorter side of 256 pixels (bilinear, antialiased), then centre-cropped.
        channels: C: 3 for RGB, 1 for grey images.

    Raises:
        InputError: on indexing: an image is damaged, missing, of another size, or has colours where
            C is 1; names it.
    """

    def __init__(
        self, root: Path, names: Sequence[str], size: tuple[int, int] | None, channels: int = 3
    ) -> None:
        self.root, self.names, self.size, self.channels = root, tuple(names), size, channels

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), self.channels, *(self.size or (_CROP, _CROP))))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        if isinstance(index, int):
            return self._decoded(index)
        if isinstance(index, slice):
            positions = list(range(len(self))[index])
        elif isinstance(index, Tensor):
            positions = (index.nonzero().flatten() if index.dtype == torch.bool else index).tolist()
        else:
            positions = list(index)
        if not positions:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8, device="cpu")
        (images,) = _read_ahead([positions], self._decoded)
        return images

    def stream(
        self, chunks: Iterable[Tensor], augmented: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        """The images of each chunk of ids, read ahead in threads.

        Args:
            chunks: (B,) int64 ids of each batch.
            augmented: (seed, epoch) of random crops and flips: of the image padded by 4 pixels
                (``augment.crop_flip``) or, for images of any size, of a random part of the image,
                resized (``augment.resized_crop_box``).
        """
        chunks = list(chunks)
        positions = [ids.tolist() for ids in chunks]
        if augmented is None:
            yield from _read_ahead(positions, self._decoded)
        elif self.size is None:
            yield from _read_ahead(positions, lambda i: self._random_part(i, *augmented))
        else:
            batches = _read_ahead(positions, self._decoded)
            for ids, images in zip(chunks, batches, strict=True):
                yield augment.crop_flip(images, ids, *augmented)

    def fingerprint(self, labels: Tensor) -> str:
        """SHA-256 (hex) over the number of channels, each file's name and length, and its label.

        Not over the pixels, since that would read all files: a change that keeps a file's length is
        not detected.
        """
        grey = "grey " if self.channels == 1 else ""
        digest = hashlib.sha256(f"{grey}image files, {self.size or 'resized to 224'}\n".encode())
        for name, label in zip(self.names, labels.tolist(), strict=True):
            path = self.root / name
            try:
                length = path.stat().st_size
            except OSError as error:
                raise _unreadable(path, error) from error
            digest.update(f"{name}\0{length}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _decoded(self, index: int) -> Tensor:
        path = self.root / self.names[index]
        image = decode(path, self.channels)
        if self.size is None:
            return _tensor(_centre(image))
        if (image.height, image.width) != self.size:
            raise InputError(
                f"{path} is {image.width} x {image.height} pixels: expected images of one size, "
                f"{self.size[1]} x {self.size[0]} as the first of its set; resize it, or use "
                "--data imagenet, which brings images of any size to 224 x 224"
            )
        return _tensor(image)

    def _random_part(self, index: int, seed: int, epoch: int) -> Tensor:
        image = decode(self.root / self.names[index], self.channels)
        left, top, width, height, flipped = augment.resized_crop_box(
            image.width, image.height, seed, epoch, index
        )
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((_CROP, _CROP), Image.Resampling.BILINEAR)
        return _tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image)


def _centre(image: Image.Image) -> Image.Image:
    """torchvision's Resize(256) and CenterCrop(224), with the same rounding."""
    short = min(image.size)
    size = tuple(_SHORT_SIDE * side // short for side in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (round((side - _CROP) / 2) for side in size)
    return image.crop((left, top, left + _CROP, top + _CROP))


def is_grey(path: Path) -> bool:
    """Whether a file holds one channel, by its header; True of what is no image, which tells
    nothing about the others."""
    if not is_regular(path):
        return True
    try:
        with Image.open(path) as image:
            return image.mode in _GREY
    except MemoryError:
        raise
    except Exception:  # ``decode`` names it
        return True


def decode(path: Path, channels: int = 3) -> Image.Image:
    """The image in a file as RGB, or as grey; transparency and EXIF orientation are ignored.

    Args:
        path: the file.
        channels: 3 for RGB, 1 for grey, of a file without colours.

    Raises:
        InputError: it cannot be read or decoded, has more than 8 bits per channel, or has colours
            where one channel is wanted.
    """
    if path.exists() and not is_regular(path):  # opening a pipe may block for ever
        raise InputError(
            f"{path} is no regular file: expected an image file, got a pipe, device or folder; "
            "remove it"
        )
    try:
        with Image.open(path) as image:
            mode, deep = image.mode, _has_deep_channels(image)
            if not deep:
                found = image.convert("RGB") if channels == 3 else _one_channel(image)
                if found is not None:
                    return found
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's readers raise for a damaged file
        raise _unreadable(path, error) from error
    if not deep:
        raise InputError(
            f"{path} has colours: expected a grey image, since the network or the training images "
            "have one channel; convert it to grey"
        )
    raise InputError(
        f"{path} has more than 8 bits a channel (mode {mode!r}): expected 8; convert it to "
        "8 bits a channel"
    )


def _has_deep_channels(image: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel; Pillow cuts some of them to 8 silently.

    By its mode, by what a TIFF says of its channels, which may lie one after the other, or by how
    the decoder is told to read it: "RGB;16B" (but "BGR;16" has 5 or 6 bits a channel), or levels up
    to a ``maxval``.
    """
    if image.mode not in _EIGHT_BIT:
        return True
    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8:
        return True
    for decoder, _, _, arguments in getattr(image, "tile", ()):
        maxval = arguments[1] if decoder.startswith("ppm") and len(arguments) == 2 else 255
        if re.search("[^R];16", str(arguments)) or maxval > 255:
            return True
    return False


def _one_channel(image: Image.Image) -> Image.Image | None:
    """The grey values of an image, which may be stored as colours; None if it has colours."""
    if image.mode in _GREY:
        return image.convert("L")
    red, green, blue = image.convert("RGB").split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else None


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    reason = " ".join(reason.replace(f"'{path}'", "").replace(str(path), "the file").split())
    return InputError(
        f"cannot read the image {path}: expected a whole image file, got '{reason[:200]}'; "
        "restore or remove it"
    )


def _tensor(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def _read_ahead(chunks: Iterable[Sequence[int]], read: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """``torch.stack`` of the results of ``read`` for each chunk, reading two chunks ahead."""
    pool = ThreadPoolExecutor(_workers(), thread_name_prefix="images")
    waiting: deque[list[Future[Tensor]]] = deque()
    try:
        for chunk in chunks:
            waiting.append([pool.submit(read, index) for index in chunk])
            if len(waiting) > _AHEAD:
                yield torch.stack([future.result() for future in waiting.popleft()])
        while waiting:
            yield torch.stack([future.result() for future in waiting.popleft()])
    finally:  # also if the caller does not exhaust the iterator
        pool.shutdown(cancel_futures=True)


def _workers() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, available or 1)
