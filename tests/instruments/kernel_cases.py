"""Arguments of every operation that has kernels, with or without memory, and its least traffic.

A case is a call of a raw operation of ``drf_fast.ops``. On the ``meta`` device its tensors have
sizes, strides and offsets but no memory, which is enough to record what it launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drf_fast import balls
from drf_fast.backends import triton
from drf_fast.kernels.launch import Launch, recording
from drf_fast.runtime.level_table import level_table

OPERATIONS = tuple(triton.MODULES)
NOISE = ("noisy_repeat", "noisy_levels", "adversary_step")  # those whose bits are fixed
BALLS = ("none", *balls.BALLS)


@dataclass(frozen=True)
class Case:
    """A call of an operation on images (B, m, C, H, W), or of a loss on logits (B, m, K)."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"  # "unaligned", "channels_last", or "sample_major" for logits
    ball: str = "hard"
    grad_norm: str = "image"
    clamp: tuple[float, float] | None = (0.0, 1.0)
    reduction: str = "mean"

    def __str__(self) -> str:
        parts = [self.operation, "x".join(map(str, self.shape)), str(self.dtype)[6:], self.layout]
        if self.operation == "adversary_step":
            parts += [self.ball, self.grad_norm, "clamp" if self.clamp else "free"]
        if self.reduction != "mean":
            parts.append(self.reduction)
        return "-".join(parts)

    @property
    def minimum_bytes(self) -> int:
        """Each large tensor is read or written once; tensors of B values are left out."""
        batch, m = self.shape[:2]
        one = math.prod(self.shape[2:]) * batch * self.dtype.itemsize
        guide = level_table(0.5, torch.device("cpu")).guide  # read by all pixels
        return {
            "noisy_repeat": one + m * one,
            "noisy_levels": one // self.dtype.itemsize + m * one + guide.nbytes,
            "noisy_repeat_backward": m * one + one,
            "adversary_step": (m * one + 2 * one) + (m * one + one),
        }.get(self.operation, 2 * m * one)

    def arguments(self, device: str = "meta") -> tuple[Any, ...]:
        batch, m, *rest = self.shape
        ids = torch.arange(batch, device=device)
        key = torch.tensor(0x1234_5678_9ABC_DEF0)
        if self.operation == "noisy_repeat":
            x = self._tensor((batch, *rest), device)
            return x, _number(0.5), key, ids, torch.tensor(3), m, "train"
        if self.operation == "noisy_levels":
            u = self._tensor((batch, *rest), device, levels=True)
            table = level_table(0.5, torch.device(device))
            names = (key, ids, torch.tensor(3), m, "train", self.dtype)
            return u, table.thresholds, table.guide, *names
        if self.operation == "noisy_repeat_backward":
            return self._tensor((batch * m, *rest), device), m
        if self.operation == "adversary_step":
            grad = self._tensor((batch * m, *rest), device, normal=True)
            x, x_adv = (self._tensor((batch, *rest), device, seed) for seed in (1, 2))
            numbers = [_number(value) for value in (0.3, 1.0, 0.5, 0.25)]
            clamp = None if self.clamp is None else list(self.clamp)
            return grad, x, x_adv, *numbers, key, ids, self.ball, self.grad_norm, clamp
        logits = self._tensor((batch, m, *rest), device, normal=True)
        target = ids % rest[0]
        weights = {
            "smooth_ce": (self.reduction,),
            "consistency_loss": (_number(10.0), _number(0.5), self.reduction),
            "macer_loss": tuple(map(_number, (0.5, 12.0, 8.0, 16.0))),
        }
        return logits, target, *weights[self.operation], True

    def _tensor(
        self,
        shape: Sequence[int],
        device: str,
        seed: int = 0,
        normal: bool = False,
        levels: bool = False,
    ) -> torch.Tensor:
        flat = torch.empty(math.prod(shape) + (self.layout == "unaligned"), device=device)
        if device != "meta":
            generator = torch.Generator(device).manual_seed(seed)
            fill = flat.normal_ if normal else flat.uniform_
            fill(generator=generator)
        flat = (flat * 255).to(torch.uint8) if levels else flat.to(self.dtype)
        if self.layout == "unaligned":
            return flat[1:].view(*shape)
        if self.layout == "sample_major":
            return flat.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        if self.layout == "channels_last":
            return flat.view(*shape).contiguous(memory_format=torch.channels_last)
        return flat.view(*shape)

    def run(self, device: str = "cpu") -> Any:
        """The result of the kernels, as a tensor or a tuple of tensors."""
        return triton.load(self.operation)(*self.arguments(device))

    def launches(self) -> list[Launch]:
        """What a call with tensors of this shape on a GPU launches."""
        with recording() as launches:
            triton.load(self.operation)(*self.arguments("meta"))
        return launches


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)
