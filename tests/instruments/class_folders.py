"""Class folders of random pictures, and reading them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from drf_fast import data

CLASSES = ("ant", "bee", "cat")


def picture(seed: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
    """Random pixels, (width, height)."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))


def write_classes(root: Path, per_class: int, seed: int = 0, **options) -> None:
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for at in range(per_class):
            file = root / name / f"{at:03d}.png"
            picture(seed + 100 * number + at, **options).save(file)


def load(folder: Path, split: str = "train", name: str = "imagefolder", **options) -> data.Dataset:
    return data.load(name, split, data_dir=folder, **options)


def make_grey(folder: Path, mode: str = "L") -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").convert(mode).save(path)
