"""Tests of the Triton kernels in Triton's interpreter: any kernel, on CPU tensors, without a GPU.

Triton reads TRITON_INTERPRET when it is imported, so these tests need a process of their own:

    TRITON_INTERPRET=1 pytest tests/kernels

tests/gpu/test_interpreter.py runs them within the ordinary session. Outputs hold NaN before a
kernel writes them, and ``every_order`` runs a function with the programs of its launches in several
orders: results that then differ show a race. On a GPU (see tests/instruments/on_gpu.py) the order
is the hardware's. DRF_FAST_TEST_KERNELS selects other ways to run them: "like-gpu" an interpreter
that is as inexact as a GPU, "ptx" the compiled code, "cuda" a GPU.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import on_gpu
import on_ptx
import pytest
import torch
from values import same_bits

import drf_fast

HERE = Path(__file__).parent
COMPILED = on_gpu.CHOSEN or on_ptx.CHOSEN
ORDERS = ("in order", "reversed", "shuffled")
# Tests of instruments that need the interpreter.
collect_ignore = ["test_harness.py", "test_memory.py"] if COMPILED else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" or COMPILED:
        return
    skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1 in the environment")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    """Operations run their kernels, without a fallback."""
    with drf_fast.use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, which shows elements that no program writes."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # under which torch fills what empty() returns
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def program_order(order: str) -> Iterator[None]:
    """Run the programs of every launch inside the block in one of ``ORDERS``."""
    if COMPILED:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder

    place = interpreter_builder.set_grid_idx

    def moved(x: int, y: int, z: int) -> None:
        programs = interpreter_builder.grid_dim[0]
        permutation = list(range(programs))
        if order == "reversed":
            permutation.reverse()
        elif order == "shuffled":
            random.Random(programs).shuffle(permutation)
        place(permutation[x], y, z)

    with mock.patch.object(interpreter_builder, "set_grid_idx", moved):
        yield


@pytest.fixture
def every_order() -> Callable[[Callable[[], Any]], Any]:
    """Call a function once per order of programs; its result, which must be the same each time."""

    def run(function: Callable[[], Any]) -> Any:
        results = []
        for order in ORDERS:
            with program_order(order):
                results.append(function())
        for order, result in zip(ORDERS, results, strict=True):
            assert same_bits(results[0], result), f"the result depends on the order: {order}"
        return results[0]

    return run


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of a loss fits into registers, and blocks of classes are small."""
    from drf_fast.kernels import loss_call

    monkeypatch.setattr(loss_call, "_LONG_ROWS", 0)
    monkeypatch.setattr(loss_call, "_SHORT_ROWS", 0)
    monkeypatch.setattr(loss_call, "_PASSING_ROWS", 32)
