"""Training = an adversary x a loss; one file a loss, imported when it is asked for.

DRF is not an entry: it is the SoftBall that a method is given instead of the HardBall, or, in
smoothmix, instead of no ball.
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
