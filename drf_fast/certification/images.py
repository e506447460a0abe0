"""Images and labels of a user, adapted to the interface of the certification engine."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from drf_fast.ops import checks as check
from drf_fast.runtime.tensors import of_array

_DRAWS = 8  # of an image, to see that it stays the same: half of those of a random flip do
_HASHED_IMAGES = 32  # images of a torch data set that its fingerprint covers


class TensorImages:
    """Images (N, ...) and labels (N,) in memory.

    Args:
        images: float pixels in [0, 1], or uint8 levels, which are divided by 255.
        labels: classes 0..K-1.
        num_classes: K.
        name: of the data, for logs.

    Raises:
        TypeError, ValueError: no images, no labels, or not one label per image.
    """

    split = "test"

    def __init__(self, images: Any, labels: Any, num_classes: int, name: str) -> None:
        self.images = _tensor(images)
        if labels is None:
            raise TypeError(
                "labels must be given with images in memory, got none; pass the (N,) true classes"
            )
        self.labels = _checked_labels(labels, len(self.images), num_classes)
        self.num_classes, self.name = num_classes, name

    def __len__(self) -> int:
        return len(self.images)

    def float_images(self, index: list[int]) -> torch.Tensor:
        """The images at ``index``."""
        return _floats(self.images[torch.as_tensor(index, device=self.images.device)])

    def fingerprint(self, indices: tuple[int, ...]) -> str:
        """SHA-256 over these images and labels."""
        return _digest(self, indices, indices)


class DatasetImages:
    """A torch data set of pairs (image, label), read item by item on demand.

    Args:
        dataset: ``dataset[i]`` is an image (C, H, W) and a class, always the same.
        labels: (N,) classes, instead of those of the data set.
        num_classes: K.
        name: of the data, for logs.

    Raises:
        TypeError, ValueError: random images, or labels that are not one class an item.
    """

    split = "test"

    def __init__(self, dataset: Any, labels: Any, num_classes: int, name: str) -> None:
        self.dataset, self.num_classes, self.name = dataset, num_classes, name
        self._labels_given = labels is not None
        self.labels: Any = (
            _LazyLabels(self)
            if labels is None
            else _checked_labels(labels, len(dataset), num_classes)
        )
        self._classes: dict[int, int] = {}
        if not self._is_deterministic():
            raise ValueError(
                "the data set must give the same image whenever it is asked, got two that differ "
                "for item 0, as random augmentation makes them; leave random transforms out"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def float_images(self, index: list[int]) -> torch.Tensor:
        """The images at ``index``; their labels are cached."""
        images = [self._image(i) for i in index]
        for i, image in zip(index, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    "the data set must give images of one size, got "
                    f"{tuple(images[0].shape)} for item {index[0]} and {tuple(image.shape)} for "
                    f"item {i}; resize them with torchvision.transforms.Resize((height, width))"
                )
        return torch.stack(images)

    def label(self, index: int) -> int:
        """The label of an image, from the cache or read with its image."""
        if index not in self._classes:
            self._image(index)
        return self._classes[index]

    def fingerprint(self, indices: tuple[int, ...]) -> str:
        """SHA-256 over the positions and over the first ``_HASHED_IMAGES`` images and labels."""
        return _digest(self, indices[:_HASHED_IMAGES], indices)

    def _is_deterministic(self) -> bool:
        if len(self) == 0:
            return True
        first = self._image(0)
        return all(torch.equal(first, self._image(0)) for _ in range(_DRAWS - 1))

    def _image(self, index: int) -> torch.Tensor:
        item: Any = self.dataset[index]
        if isinstance(item, Mapping):
            raise TypeError(
                "the data set must give pairs (image, label), got a dict with the keys "
                f"{', '.join(map(str, item))}; wrap it in a class whose __getitem__ returns "
                'item["image"], item["label"] and whose __len__ is that of the data set'
            )
        is_pair = isinstance(item, (tuple, list))
        if not self._labels_given and not (is_pair and len(item) >= 2):
            raise TypeError(
                f"the data set must give pairs (image, label), got {type(item).__name__}; pass "
                "labels= where it has none"
            )
        image = item[0] if is_pair else item
        if not isinstance(image, (torch.Tensor, np.ndarray)):
            raise TypeError(
                "the data set must give images as tensors (C, H, W) in [0, 1], got "
                f"{type(image).__name__}; make them with torchvision.transforms.ToTensor()"
            )
        if not self._labels_given:
            self._classes[index] = _check_class(_class_of(item[1], index), self.num_classes)
        return _floats(_tensor(image))


class _LazyLabels:
    """``labels[index]`` of a data set that reads labels together with its images."""

    def __init__(self, images: DatasetImages) -> None:
        self._images = images

    def __getitem__(self, index: int) -> int:
        return self._images.label(index)


def _tensor(images: Any) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        images = of_array(images, "images")
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            "images must be a tensor or array (N, C, H, W), or a torch data set of pairs (image, "
            f"label), got {type(images).__name__}"
        )
    return images


def _floats(images: torch.Tensor) -> torch.Tensor:
    # On the CPU, which rounds the quotient correctly, as sound certificates need.
    return images.cpu().float() / 255 if images.dtype == torch.uint8 else images


def _checked_labels(labels: Any, count: int, num_classes: int) -> torch.Tensor:
    expected = f"labels must be {count} whole numbers, one an image"
    if not isinstance(labels, torch.Tensor):
        try:
            labels = of_array(np.asarray(labels), "labels")
        except (TypeError, ValueError) as error:  # strings, None, lists of several lengths
            raise TypeError(f"{expected}, got {check.brief(labels)}; number the classes") from error
    shape = tuple(labels.shape)
    if shape != (count,) or labels.is_floating_point() or labels.is_complex():
        how = check.how_to_pass_labels(shape, count, num_classes, "labels")
        raise ValueError(
            f"{expected}, got shape {shape} of {labels.dtype}{'' if how is None else '; ' + how}"
        )
    labels = labels.to("cpu", torch.int64)
    for label in labels.unique().tolist():
        _check_class(label, num_classes)
    return labels


def _class_of(label: Any, index: int) -> int:
    """The label of an item, a whole number or a tensor or array of one."""
    if isinstance(label, numbers.Integral):
        return int(label)
    shape, how = None, "number the classes"
    if isinstance(label, (torch.Tensor, np.ndarray, np.generic)):
        values = np.asarray(label.cpu() if isinstance(label, torch.Tensor) else label)
        if values.size == 1 and values.dtype.kind in "iub":
            return int(values.item())
        shape, how = values.shape, "give the class itself, of one-hot labels label.argmax()"
    got = check.brief(label) if shape is None else f"shape {shape} of {values.dtype}"
    raise TypeError(
        f"the data set must give one whole number as the label of an image, got {got} for item "
        f"{index}; {how}"
    )


def _check_class(label: int, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise ValueError(
            f"labels must lie between 0 and {num_classes - 1}, as the classifier's classes do, got "
            f"{label}"
        )
    return label


def _digest(images: Any, hashed: Iterable[int], indices: tuple[int, ...]) -> str:
    digest = hashlib.sha256(np.array(indices, dtype="<i8").tobytes())
    for index in hashed:
        x = images.float_images([index])[0].detach().cpu().contiguous()
        digest.update(f"{x.dtype} {tuple(x.shape)} {int(images.labels[index])};".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
