"""All that a training run holds in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from drf_fast import data
from drf_fast.balls import HardBall, SoftBall
from drf_fast.config.options import TrainConfig
from drf_fast.runtime import processes
from drf_fast.runtime.progress import say


@dataclasses.dataclass
class Totals:
    """Sums over the images that an epoch has seen so far, of all processes.

    Attributes:
        sums: (3,) float64 on the device: loss, share of right noisy copies, distance.
        images: how many.
        seconds: time spent on them.
    """

    sums: torch.Tensor
    images: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Run:
    """A training run; ``config`` is resolved: what "auto" stands for is measured and recorded."""

    config: TrainConfig
    folder: Path
    train_set: data.Dataset
    test_set: data.Dataset
    device: torch.device
    model: torch.nn.Module
    network: Any  # the model, compiled if asked for
    optimizer: torch.optim.Optimizer
    ball: HardBall | SoftBall | None
    totals: Totals
    graphs: Any = None  # GraphedSteps, where steps run as CUDA graphs
    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0
    init_sha256: str | None = None  # hash of the file whose weights it started from
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # forms that failed, and how
    recorded: dict[str, str] | None = None  # of these, what config.json says
    teacher_sha256: str | None = None  # hash of the file whose smoothed predictions it is taught
    teacher: Any = None  # of catrs, where its votes are still to be counted
    smoothed: torch.Tensor | None = None  # (N, K) float32 on the device, of catrs alone

    def no_totals(self) -> Totals:
        """Sums of an epoch that begins."""
        return Totals(torch.zeros(3, dtype=torch.float64, device=self.device))


def announce(message: str) -> None:
    """One line for the user, of process 0 alone."""
    if processes.rank() == 0:
        say(message)
