"""A small network and few images, to be certified."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import drf_fast

K, COUNT = 4, 9
FEW: Any = {"n0": 20, "n": 200, "alpha": 0.01, "batch_size": 64, "progress": False}


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, K))


def images() -> torch.Tensor:
    return torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def labels() -> torch.Tensor:
    return torch.arange(COUNT) % K


def smoothed(**options: Any) -> drf_fast.SmoothedClassifier:
    return drf_fast.SmoothedClassifier(network(), K, 0.25, **options)


def same(one: Any, other: Any, radii: float = 0.0) -> None:
    for name, a, b in zip(one._fields, one, other, strict=True):
        if name in ("radius", "p_lower"):  # a log rounds them down to 12 decimals
            torch.testing.assert_close(a, b, rtol=0, atol=radii)
        else:
            assert torch.equal(a, b), name


class Pairs(torch.utils.data.Dataset):
    """Items that are read when they are asked for."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        self.read.append(index)
        return images()[index], int(labels()[index])
