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
def test_a_share_of_the_cases_in_the_interpreter():
    kernel_sessions.passes(kernel_sessions.FILES, 2, TRITON_INTERPRET="1", DRF_FAST_TEST_SHARE="8")


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_all_cases_in_the_interpreter():
    kernel_sessions.passes(kernel_sessions.FILES, 2, TRITON_INTERPRET="1")


def test_a_share_holds_cases_of_every_test_and_few_of_those_with_many(monkeypatch):
    monkeypatch.setattr(kernel_sessions, "SHARE", 3)
    names = [*(f"a[{case}]" for case in range(300)), *(f"b[{case}]" for case in range(3)), "c"]
    runs = kernel_sessions.chosen(names)
    assert 60 < sum(runs[:300]) < 140 and all(runs[300:])
    many = [f"{function}[{case}]" for function in range(200) for case in range(4)]
    runs = kernel_sessions.chosen(many)
    assert all(any(runs[4 * at : 4 * at + 4]) for at in range(200)) and sum(runs) < 500


@pytest.mark.timeout(1800)
def test_a_share_of_the_cases_in_an_interpreter_that_is_as_inexact_as_a_gpu():
    kernel_sessions.passes(
        kernel_sessions.FILES,
        2,
        TRITON_INTERPRET="1",
        DRF_FAST_TEST_KERNELS="like-gpu",
        DRF_FAST_TEST_SHARE="8",
        DRF_FAST_TEST_SEED="1",  # a fixed seed, for reproducible results
    )


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_all_cases_in_an_interpreter_that_is_as_inexact_as_a_gpu():
    kernel_sessions.passes(
        kernel_sessions.FILES, 2, TRITON_INTERPRET="1", DRF_FAST_TEST_KERNELS="like-gpu"
    )
