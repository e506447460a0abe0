"""Tests of kernels on CPU tensors, run by a GPU: each launch copies its tensors there and back.

With ``DRF_FAST_TEST_KERNELS=cuda`` in the environment a session runs compiled on the GPU what
``TRITON_INTERPRET=1`` runs in the interpreter. Whole storages are copied, so that offsets, gaps and
poison are kept, and a store outside a view is copied back and seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

CHOSEN = os.environ.get("DRF_FAST_TEST_KERNELS") == "cuda"


def _bridged(run: Any) -> Any:
    def there_and_back(self: Any, *arguments: Any, **options: Any) -> Any:
        storages: dict[int, tuple[Any, Any]] = {}

        def moved(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                return value
            here = value.untyped_storage()
            _, there = storages.setdefault(here._cdata, (here, here.cuda()))
            twin = torch.empty(0, dtype=value.dtype, device="cuda")
            return twin.set_(there, value.storage_offset(), value.shape, value.stride())

        result = run(self, *map(moved, arguments), **options)
        for here, there in storages.values():
            here.copy_(there)
        return result

    return there_and_back


def not_here(*arguments: Any) -> Any:
    pytest.skip("counts accesses, which only the interpreter sees")


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """Inside, the backend "triton" takes CPU tensors and computes on the GPU."""
    import phantom
    from triton.runtime.jit import JITFunction

    from drf_fast.backends import triton

    with (
        mock.patch.object(JITFunction, "run", _bridged(JITFunction.run)),
        mock.patch.object(triton, "why_not", lambda device_type: None),
        mock.patch.object(phantom, "watch", not_here),
        mock.patch.object(phantom, "run", not_here),
    ):
        yield
