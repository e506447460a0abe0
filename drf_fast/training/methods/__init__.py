"""Training = an adversary x a loss; one file for each loss, imported on demand.

DRF has no file: it is a method with a SoftBall instead of a HardBall or, for smoothmix, instead of
no ball.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from drf_fast.config import methods


def get(name: str) -> ModuleType:
    """The method's module, with ``step(model, batch, options, ball) -> StepLoss``.

    Raises:
        InputError: unknown name.
    """
    methods.uses_adversary(name)
    return importlib.import_module(f"drf_fast.training.methods.{name}")
