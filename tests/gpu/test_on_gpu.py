"""Runs the interpreter's tests compiled, on a GPU: see tests/instruments/on_gpu.py."""

from __future__ import annotations

import os

import kernel_sessions
import on_gpu
import pytest

pytestmark = [
    pytest.mark.proofs,
    pytest.mark.gpu,
    pytest.mark.skipif(on_gpu.CHOSEN, reason="the whole session runs on the GPU"),
]
# Tests of instruments that need the interpreter.
INTERPRETED = ("test_harness.py", "test_memory.py")


@pytest.mark.timeout(1800)
def test_compiled_on_the_gpu():
    files = [file for file in kernel_sessions.FILES if file.name not in INTERPRETED]
    processes = max(2, (os.cpu_count() or 2) - 2)  # the first session compiles every kernel
    kernel_sessions.passes(files, processes, DRF_FAST_TEST_KERNELS="cuda")
