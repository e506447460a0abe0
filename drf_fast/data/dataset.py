"""A labelled set of images, and reproducible minibatches of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drf_fast.data import augment as augmentation
from drf_fast.data.image_files import ImageFiles


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one split.

    Attributes:
        images: (N, C, H, W) uint8, 0 to 255: a tensor, or image files, decoded on indexing; both
            have ``shape``, and ``images[index]`` is a tensor.
        labels: (N,) int64, 0 to ``num_classes - 1``.
        num_classes: number of classes.
        name: the name that ``load`` was given.
        split: ``"train"`` or ``"test"``.
        class_names: one name for each class.
        fingerprint: SHA-256 (hex) of the bytes of ``images``, then of ``labels`` (little-endian);
            of image files, see ``ImageFiles.fingerprint``.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    num_classes: int
    name: str
    split: str
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def float_images(self, index: Tensor | slice | Sequence[int]) -> Tensor:
        """Images at ``index`` as float32 in [0, 1]: the byte divided by 255, correctly rounded."""
        return _floats(self.images[index])

    def class_name(self, label: int) -> str:
        """The name of a class; its number if a damaged log names one that does not exist."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])


def _floats(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255)


def fingerprint(images: Tensor | ImageFiles, labels: Tensor) -> str:
    """SHA-256 (hex) over the bytes of ``images`` (uint8), then ``labels`` (int64, little-endian).

    Equal images and labels in the same order have the same fingerprint, whichever files they were
    read from, so logs can be compared without relying on the name of the data set.
    """
    if isinstance(images, ImageFiles):
        return images.fingerprint(labels)
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().astype("<i8", copy=False).data)
    return digest.hexdigest()


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle_seed: int | None,
    epoch: int,
    drop_last: bool = False,
    smallest: int = 1,
    start: int = 0,
    augment: str = "none",
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Minibatches of one epoch, gathered from memory or read from files two batches ahead.

    The order is a function of ``(shuffle_seed, epoch)``, a crop or flip of the image's id too, and
    torch's global generator is not used, so a run that is resumed at batch ``start`` of an epoch
    gets exactly the same batches as an uninterrupted one.

    Args:
        dataset: the data.
        batch_size: images in a batch, at least 1.
        shuffle_seed: seed of the order; ``None`` keeps the order of the data set.
        epoch: number of the epoch, from 0.
        drop_last: leave out a last batch that is not full.
        smallest: a last batch of fewer images is merged with the one before it.
        start: index of the first batch to yield.
        augment: "none"; "crop-flip" crops and flips at random (``drf_fast.data.augment``), for
            which ``shuffle_seed`` must be a number.

    Yields:
        images (B, C, H, W) float32 in [0, 1]; labels (B,) int64; ids (B,) int64, the position of
        each image in ``dataset``.

    Raises:
        ValueError: ``batch_size`` below 1, ``epoch`` or ``start`` below 0, an unknown ``augment``
            or one without a seed.
        InputError: while iterating over image files: one is damaged or missing.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if epoch < 0 or start < 0:
        raise ValueError(f"epoch and start must be 0 or more, got {epoch=} and {start=}")
    if augment not in augmentation.NAMES:
        raise ValueError(f"augment must be one of {', '.join(augmentation.NAMES)}, got {augment!r}")
    key = None
    if augment != "none":
        if shuffle_seed is None:
            raise ValueError(f"augment={augment!r} draws random crops: expected a shuffle_seed")
        key = (shuffle_seed, epoch)
    chunks = list(_order(len(dataset), shuffle_seed, epoch).split(batch_size))
    if drop_last and chunks and len(chunks[-1]) < batch_size:
        chunks.pop()
    if len(chunks) > 1 and len(chunks[-1]) < smallest:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return _iterate(dataset, chunks[start:], key)


def _iterate(
    dataset: Dataset, chunks: list[Tensor], key: tuple[int, int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if isinstance(dataset.images, ImageFiles):
        pictures = dataset.images.stream(chunks, key)
    elif key is None:
        pictures = map(dataset.images.__getitem__, chunks)
    else:
        images = dataset.images
        pictures = (augmentation.crop_flip(images[ids], ids, *key) for ids in chunks)
    for ids, picture in zip(chunks, pictures, strict=True):
        yield _floats(picture), dataset.labels[ids], ids


def _order(size: int, shuffle_seed: int | None, epoch: int) -> Tensor:
    if shuffle_seed is None:
        return torch.arange(size, device="cpu")
    # Hashed rather than added: seed 1, epoch 0 must not repeat the order of seed 0, epoch 1.
    digest = hashlib.sha256(f"{int(shuffle_seed)},{int(epoch)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randperm(size, generator=generator, device="cpu")
