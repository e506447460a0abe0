"""Training = an adversary x a loss; one file a loss, imported when it is asked for.

DRF is not an entry: it is the SoftBall that a method is given instead of the HardBall, or, in
smoothmix, instead of no ball.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from drf_fast.errors import InputError

# Name of the file, and whether the method trains on adversarial images.
_USES_ADVERSARY = {
    "gaussian": False,
    "stability": False,
    "macer": False,
    "smoothmix": True,
    "smoothadv": True,
    "consistency": True,
}
NAMES = tuple(_USES_ADVERSARY)


def uses_adversary(name: str) -> bool:
    """Whether the method trains on adversarial images.

    Raises:
        InputError: unknown name.
    """
    if name not in _USES_ADVERSARY:
        raise InputError(f"--method must be one of {', '.join(NAMES)}, got {name!r}")
    return _USES_ADVERSARY[name]


def get(name: str) -> ModuleType:
    """The method's module, with ``step(model, batch, options, ball) -> StepLoss``.

    Raises:
        InputError: unknown name.
    """
    uses_adversary(name)
    return importlib.import_module(f"drf_fast.methods.{name}")
