"""Standard output and error of a program whose reader may leave."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


def discard(stream: TextIO) -> None:
    """Drop what the stream has buffered and all that follows; Python would fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
