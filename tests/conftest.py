"""Shared by all tests: the backends that can run an operation, and tests that need a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import drf_fast


def backends_of(operations: tuple[str, ...]) -> list[str]:
    """The reference, and what else this installation has on the CPU for all the operations.

    "auto" stands for a mixture: some of them have a compiled implementation and some have not.
    """
    from drf_fast.backends import cpu

    kinds = {cpu.OPERATIONS.get(operation) for operation in operations}
    if kinds == {None}:
        return ["reference"]
    compiled = kinds.pop() if len(kinds) == 1 else None
    return ["reference", compiled or "auto"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``backend`` runs on each backend of its module's OPERATIONS."""
    if "backend" in metafunc.fixturenames:
        assert metafunc.module is not None
        names = backends_of(metafunc.module.OPERATIONS)
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on one backend, strictly."""
    with drf_fast.use_backend(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
