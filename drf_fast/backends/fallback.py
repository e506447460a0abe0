"""The warning that CUDA tensors run on the slower reference backend."""

from __future__ import annotations

import warnings

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn that CUDA tensors run on the slower reference backend, once for each reason.

    The reason is the part of ``message`` after the operation's name.
    """
    reason = message.partition(": ")[2]
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"CUDA tensors run on the reference backend: {message}", RuntimeWarning, stacklevel=3
        )
