"""Calls of the operations with good arguments, to be given one bad one, and their refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import drf_fast

Case = tuple[str, Callable[[], Any], type[Exception], str]

X = torch.rand(2, 1, 3, 3)
IDS = torch.arange(2)
LOGITS = torch.zeros(6, 4)
TARGET = torch.tensor([0, 3])
META = torch.zeros(2, 1, 3, 3, device="meta")


def noisy(x: Any = X, sigma: Any = 0.5, m: Any = 2, **options: Any) -> Any:
    return drf_fast.noisy_repeat(x, sigma, m, **options)


def ce(logits: Any = LOGITS, target: Any = TARGET, m: Any = 3, **options: Any) -> Any:
    return drf_fast.smooth_ce(logits, target, m, **options)


def consistency(**options: Any) -> Any:
    return drf_fast.consistency_loss(LOGITS, TARGET, 3, **{"lam": 1.0, **options})


def macer(**options: Any) -> Any:
    return drf_fast.macer_loss(LOGITS, TARGET, 3, **{"sigma": 0.5, "lam": 1.0, **options})


def step(grad: Any = None, x: Any = X, x_adv: Any = X, **options: Any) -> Any:
    noise = {"sigma": 0.5, "seed": 1, "image_ids": IDS}
    defaults = {"step_size": 0.1, "ball": drf_fast.HardBall(1.0), **noise}
    grad = torch.zeros(4, 1, 3, 3) if grad is None else grad
    return drf_fast.adversary_step(grad, x, x_adv, **{**defaults, **options})


def attack(x: Any = X, target: Any = TARGET, **options: Any) -> Any:
    defaults = {"sigma": 0.5, "num_samples": 2, "steps": 1, "ball": drf_fast.HardBall(1.0)}
    weight = torch.ones(9, 4)
    return drf_fast.attack(
        lambda rows: rows.flatten(1) @ weight, x, target, **{**defaults, **options}
    )


def vote(logits: Any = LOGITS, counts: Any = None) -> Any:
    counts = torch.zeros(2, 4, dtype=torch.int64) if counts is None else counts
    return drf_fast.vote(logits, counts)


def with_value(value: float) -> torch.Tensor:
    logits = LOGITS.clone()
    logits[4, 1] = value
    return logits


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def assert_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    """An exception of this very kind, in one line that is neither short nor long."""
    with pytest.raises(kind, match=message) as caught:
        call()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text and 20 < len(text) < 400
