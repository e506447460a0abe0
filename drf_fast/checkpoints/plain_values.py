"""What may lie beside the weights in a file: NumPy numbers, the arguments of a run, paths.

Nothing of NumPy or argparse is called to read them. Where the file names such a type, torch's
restricted reader is handed ``Inert`` instead, which takes whatever it is given and keeps nothing.
So no code is run but that of this file, and the values, which nobody needs here, are lost.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
_NAMES = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    "argparse.Namespace",
    *(
        f"pathlib.{kind}Path"
        for kind in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")
    ),
    *(f"pathlib._local.{kind}Path" for kind in ("", "Posix", "Windows")),
)


class Inert:
    """Stands for a value that was not read."""

    def __new__(cls, *arguments: Any) -> Inert:
        """Without its arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        """Without its arguments."""

    def __setstate__(self, state: Any) -> None:
        """Without the state."""


def readable() -> contextlib.AbstractContextManager[Any]:
    """While this is open, ``torch.load(..., weights_only=True)`` skips such values."""
    globals_: list[Any] = [(Inert, name) for name in _NAMES]
    return torch.serialization.safe_globals(globals_)
