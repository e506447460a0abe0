"""The state of a training run in memory."""

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
    """Sums over the images of the epoch so far, of all processes.

    Attributes:
        sums: (3,) float64 on the device: loss, share of right noisy copies, distance.
        images: number of images.
        seconds: time spent on them.
    """

    sums: torch.Tensor
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, device: torch.device) -> Totals:
        """Totals at the start of an epoch."""
        return cls(torch.zeros(3, dtype=torch.float64, device=device))


@dataclasses.dataclass
class Run:
    """A training run; in ``config`` each "auto" is replaced by the choice that was made."""

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
    batch: int = 0  # number of batches done in this epoch
    step: int = 0
    init_sha256: str | None = None  # hash of the file with the initial weights
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # failed forms and errors
    recorded: dict[str, str] | None = None  # left_out as last written to config.json
    teacher_sha256: str | None = None  # hash of the teacher's file, for catrs
    teacher: Any = None  # a Teacher, for catrs, if its votes are still to be counted
    smoothed: torch.Tensor | None = None  # (N, K) float32 on the device, for catrs


def announce(message: str) -> None:
    """Print one line for the user, in process 0 only."""
    if processes.rank() == 0:
        say(message)
