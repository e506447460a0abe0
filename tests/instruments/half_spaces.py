"""Classifiers of two classes whose certificates are known, and their smoothing."""

from __future__ import annotations

from typing import Any

import torch

import drf_fast

SIGMA, ALPHA = 0.5, 0.001


def classifier(base: Any, sound: bool, **options: Any) -> drf_fast.SmoothedClassifier:
    """``base`` smoothed at ``SIGMA``."""
    return drf_fast.SmoothedClassifier(base, 2, SIGMA, sound=sound, **options)


def two_classes(first: torch.Tensor) -> torch.Tensor:
    """Logits (N, 2): class 0 where ``first`` (N,) holds."""
    return torch.stack([first.float(), (~first).float()], dim=1)


def above(rows: torch.Tensor) -> torch.Tensor:
    """Half-spaces between the levels 99 and 100: rounding to levels does not move their border."""
    return two_classes(rows.flatten(1)[:, 0] * 255 > 99.5)
