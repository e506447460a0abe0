"""Skipping harmless values beside the weights in a file: NumPy numbers, arguments of a run, paths.

No code of NumPy or argparse runs. Where the file names such a type, torch's restricted unpickler
constructs ``Inert`` instead, which accepts and discards all arguments. So only code of this module
runs, and these values, which are not needed, are lost.
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
    """A placeholder for a value that is not read."""

    def __new__(cls, *arguments: Any) -> Inert:
        """Without its arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        """Without its arguments."""

    def __setstate__(self, state: Any) -> None:
        """Without the state."""


def readable() -> contextlib.AbstractContextManager[Any]:
    """A context manager in which ``torch.load(..., weights_only=True)`` skips such values."""
    globals_: list[Any] = [(Inert, name) for name in _NAMES]
    return torch.serialization.safe_globals(globals_)
