"""Triton's interpreter without repeated patching, which takes much of its time.

At each launch, and at each call of one of a kernel's own functions, the interpreter patches
``triton.language`` with functions that compute with NumPy. Here that is done once for each module
of kernels, and undone at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

# Triton reads this variable when it is imported: a session either interprets kernels or compiles.
CHOSEN = os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def faster() -> Iterator[None]:
    """Inside, ``triton.language`` stays patched between launches."""
    from triton.runtime import interpreter

    replace = interpreter._patch_lang
    scopes: dict[str, Any] = {}

    def once(fn: Any) -> Any:
        if fn.__module__ not in scopes:
            scopes[fn.__module__] = replace(fn)
        return SimpleNamespace(restore=lambda: None)

    with mock.patch.object(interpreter, "_patch_lang", once):
        yield
    for scope in reversed(scopes.values()):
        if scope is not None:  # None in a Triton version that never restores the language
            scope.restore()
