"""Whether this process was forked from one that had imported drf_fast, whose threads it lacks."""

from __future__ import annotations

import os

_forked = False


def is_forked() -> bool:
    """Whether it was: OpenMP would wait for the parent's threads for ever."""
    return _forked


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
