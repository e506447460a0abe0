"""Images and labels that a user hands over, as the engine of certification takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

_LOOKED_AT = 32  # of the images of a torch data set, for its fingerprint


class TensorImages:
    """Images (N, ...) and labels (N,) in memory.

    Args:
        images: float pixels in [0, 1], or uint8, which are levels to be divided by 255.
        labels: classes 0..K-1.
        num_classes: K.
        name: of the data, for logs.

    Raises:
        TypeError, ValueError: no images, no labels, or not one label an image.
    """

    split = "test"

    def __init__(self, images: Any, labels: Any, num_classes: int, name: str) -> None:
        self.images = _tensor(images)
        if labels is None:
            raise TypeError(
                "labels must be given with images in memory, got none; pass the (N,) true classes"
            )
        self.labels = torch.as_tensor(labels).cpu()
        self.num_classes, self.name = num_classes, name
        count = len(self.images)
        if self.labels.shape != (count,) or self.labels.is_floating_point():
            raise ValueError(
                f"labels must be {count} whole numbers, one an image, got shape "
                f"{tuple(self.labels.shape)} of {self.labels.dtype}"
            )
        for label in self.labels.unique().tolist():
            _class(label, num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def float_images(self, index: list[int]) -> torch.Tensor:
        """The images at ``index``."""
        return _floats(self.images[torch.as_tensor(index, device=self.images.device)])

    def fingerprint(self, indices: tuple[int, ...]) -> str:
        """SHA-256 over these images and labels."""
        return _digest(self, indices, indices)


class DatasetImages:
    """A torch data set of pairs (image, label), read item by item when it is needed.

    Args:
        dataset: ``dataset[i]`` is an image (C, H, W) and a class, always the same.
        labels: (N,) classes, instead of those of the data set.
        num_classes: K.
        name: of the data, for logs.
    """

    split = "test"

    def __init__(self, dataset: Any, labels: Any, num_classes: int, name: str) -> None:
        self.dataset, self.num_classes, self.name = dataset, num_classes, name
        self._given = labels is not None
        self.labels: Any = _Labels(self) if labels is None else torch.as_tensor(labels).cpu()
        self._classes: dict[int, int] = {}
        if not self._items_stay():
            raise ValueError(
                "the data set must give the same image whenever it is asked, got two that differ "
                "for item 0, as random augmentation makes them; leave random transforms out"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def float_images(self, index: list[int]) -> torch.Tensor:
        """The images at ``index``; their classes are kept."""
        return torch.stack([self._image(at) for at in index])

    def label(self, index: int) -> int:
        """The class of an image, of those kept or read again."""
        if index not in self._classes:
            self._image(index)
        return self._classes[index]

    def fingerprint(self, indices: tuple[int, ...]) -> str:
        """SHA-256 over the positions, and the first images with their labels."""
        return _digest(self, indices[:_LOOKED_AT], indices)

    def _items_stay(self) -> bool:
        return len(self) == 0 or torch.equal(self._image(0), self._image(0))

    def _image(self, index: int) -> torch.Tensor:
        item: Any = self.dataset[index]
        several = isinstance(item, (tuple, list))
        if not self._given and not (several and len(item) >= 2):
            raise TypeError(
                f"the data set must give pairs (image, label), got {type(item).__name__}; pass "
                "labels= where it has none"
            )
        image = item[0] if several else item
        if not isinstance(image, (torch.Tensor, np.ndarray)):
            raise TypeError(
                "the data set must give images as tensors (C, H, W) in [0, 1], got "
                f"{type(image).__name__}; make them with torchvision.transforms.ToTensor()"
            )
        if not self._given:
            self._classes[index] = _class(int(item[1]), self.num_classes)
        return _floats(_tensor(image))


class _Labels:
    def __init__(self, of: DatasetImages) -> None:
        self._of = of

    def __getitem__(self, index: int) -> int:
        return self._of.label(index)


def _tensor(images: Any) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            "images must be a tensor or array (N, C, H, W), or a torch data set of pairs (image, "
            f"label), got {type(images).__name__}"
        )
    return images


def _floats(images: torch.Tensor) -> torch.Tensor:
    # On the CPU, where the quotient is rounded correctly, as sound certificates need it.
    return images.cpu().float() / 255 if images.dtype == torch.uint8 else images


def _class(label: int, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise ValueError(
            f"labels must lie between 0 and {num_classes - 1}, as the classifier's classes do, got "
            f"{label}"
        )
    return label


def _digest(images: Any, looked_at: Iterable[int], indices: tuple[int, ...]) -> str:
    digest = hashlib.sha256(np.array(indices, dtype="<i8").tobytes())
    for index in looked_at:
        x = images.float_images([index])[0].detach().cpu().contiguous()
        digest.update(f"{x.dtype} {tuple(x.shape)} {int(images.labels[index])};".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
