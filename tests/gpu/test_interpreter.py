"""Runs the Triton kernels in Triton's interpreter, which needs processes of its own."""

from __future__ import annotations

import importlib.util
import os

import kernel_sessions
import pytest

pytestmark = [
    pytest.mark.proofs,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the whole session is interpreted"
    ),
]


@pytest.mark.timeout(1800)
def test_in_the_interpreter():
    kernel_sessions.passes(kernel_sessions.FILES, 2, TRITON_INTERPRET="1")


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_in_an_interpreter_that_is_as_inexact_as_a_gpu():
    kernel_sessions.passes(
        kernel_sessions.FILES, 2, TRITON_INTERPRET="1", DRF_FAST_TEST_KERNELS="like-gpu"
    )
