"""Random crops and flips as a function of (seed, epoch, image id) only.

So resuming a run or dividing a batch among processes gives the same images, and torch's global
generator is not used.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from drf_fast.config.choices import Augment

NAMES = get_args(Augment)
PADDING = 4
_AREA, _RATIO, _ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


def uniforms(seed: int, epoch: int, image_id: int, attempt: int = 0) -> tuple[float, ...]:
    """Four independent numbers in [0, 1), multiples of 2^-53, hashed from the arguments."""
    words = f"augment,{int(seed)},{int(epoch)},{int(image_id)},{int(attempt)}"
    numbers = struct.unpack("<4Q", hashlib.sha256(words.encode()).digest())
    return tuple((number >> 11) * 2.0**-53 for number in numbers)


def crop_flip(images: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """A random crop of the original size out of each image padded by 4 black pixels, flipped left
    to right with probability 1/2: the augmentation of He et al. (2016, section 4.2) for CIFAR-10.

    Args:
        images: (B, C, H, W), any dtype.
        ids: (B,) ids of the images.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        A new contiguous tensor of the shape and dtype of ``images``.
    """
    height, width = images.shape[-2:]
    draws = torch.tensor(
        [uniforms(seed, epoch, image_id)[:3] for image_id in ids.tolist()],
        dtype=torch.float64,
        device="cpu",
    ).reshape(-1, 3)
    offsets = (draws[:, :2] * (2 * PADDING + 1)).long()
    rows = offsets[:, :1] + torch.arange(height, device="cpu")
    columns = torch.arange(width, device="cpu").expand(len(images), width)
    columns = offsets[:, 1:] + torch.where(draws[:, 2:] < 0.5, columns, width - 1 - columns)
    padded = F.pad(images, (PADDING,) * 4)
    image = torch.arange(len(images), device="cpu")[:, None, None]
    picked = padded[image, :, rows[:, :, None], columns[:, None]]
    return picked.permute(0, 3, 1, 2).contiguous()


def resized_crop_box(
    width: int, height: int, seed: int, epoch: int, image_id: int
) -> tuple[int, int, int, int, bool]:
    """The random box of an image of any size that is resized for training, and whether to flip it.

    A uniform share of 8 to 100 % of the area at a log-uniform aspect ratio between 3:4 and 4:3
    (Szegedy et al. 2015, section 6), drawn until it fits into the image, at most ten times; after
    that the largest centred box of an allowed ratio.

    Returns:
        left, top, width, height, flipped.
    """
    flipped = uniforms(seed, epoch, image_id)[0] < 0.5
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(1, _ATTEMPTS + 1):
        share, shape, across, down = uniforms(seed, epoch, image_id, attempt)
        area = width * height * (_AREA[0] + share * (_AREA[1] - _AREA[0]))
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, w, h, flipped
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    return (width - w) // 2, (height - h) // 2, w, h, flipped
