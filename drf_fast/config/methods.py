"""The training methods by name, and the flags of each; nothing here imports torch."""

from __future__ import annotations

from drf_fast.config import tags
from drf_fast.config.options import TrainConfig
from drf_fast.errors import InputError

# Name of the file, and whether the method trains on adversarial images.
_USES_ADVERSARY = {
    "gaussian": False,
    "stability": False,
    "macer": False,
    "smoothmix": True,
    "smoothadv": True,
    "consistency": True,
    "catrs": True,
}
NAMES = tuple(_USES_ADVERSARY)
FLAGS = tags.of_methods(TrainConfig)


def uses_adversary(name: str) -> bool:
    """Whether the method trains on adversarial images.

    Raises:
        InputError: unknown name.
    """
    if name not in _USES_ADVERSARY:
        raise InputError(f"--method must be one of {', '.join(NAMES)}, got {name!r}")
    return _USES_ADVERSARY[name]
