"""Triton's interpreter without a repetition that takes half of its time.

Functions that compute with NumPy take the place of those of ``triton.language`` when a kernel is
launched, and once more at each call of one of a kernel's own functions, where the second and all
further calls into the same module change nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

# Triton reads this variable when it is imported: a session either interprets kernels or compiles.
CHOSEN = os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def faster() -> Iterator[None]:
    """Inside, a launch replaces the language once for each module that its functions are from."""
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__
    replaced: set[str] = set()

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        replaced.clear()
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launched),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
    ):
        yield
