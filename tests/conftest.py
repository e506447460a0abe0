"""Shared by all tests: the backends that can run an operation, and tests that need a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import interpreted
import kernel_sessions
import like_gpu
import on_gpu
import on_ptx
import pytest
import torch

import drf_fast

# Whether this session runs kernels; the ordinary session starts such ones as subprocesses, in
# gpu/test_interpreter.py, test_ptx.py and test_on_gpu.py.
KERNELS = interpreted.CHOSEN or on_gpu.CHOSEN or on_ptx.CHOSEN
collect_ignore = [] if KERNELS else ["kernels"]


def pytest_configure(config: pytest.Config) -> None:
    """One thread in each of xdist's processes and their subprocesses, which fill the cores."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def backends_of(operations: tuple[str, ...]) -> list[str]:
    """The reference, and the other backend of this installation for the operations on the CPU.

    "auto" where only some of them have a compiled implementation.
    """
    from drf_fast.backends.native import cpu

    if KERNELS:
        return ["triton"]
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


@pytest.fixture(autouse=interpreted.CHOSEN, scope="session")
def interpreted_fast() -> Iterator[None]:
    with interpreted.faster():
        yield


@pytest.fixture(autouse=on_gpu.CHOSEN, scope="session")
def bridged() -> Iterator[None]:
    """Kernels take the CPU tensors of tests to the GPU."""
    with on_gpu.bridge():
        yield


@pytest.fixture(autouse=on_ptx.CHOSEN, scope="session")
def as_ptx() -> Iterator[None]:
    """Kernels are compiled, and their PTX is executed on the tests' tensors."""
    with on_ptx.bridge():
        yield
    on_ptx.tell()


@pytest.fixture(autouse=like_gpu.CHOSEN, scope="session")
def as_a_gpu() -> Iterator[None]:
    """The interpreter is only as accurate as a GPU is specified to be."""
    with like_gpu.installed():
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """``time.perf_counter`` advances by the arguments of ``time.sleep``, and 1 us at each reading.

    Measured times are then those that a test prescribes, whatever the machine's load.
    """
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def read() -> float:
        wait(1e-6)  # so that no rate is infinite
        return now

    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr(time, "perf_counter", read)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if like_gpu.CHOSEN:
        like_gpu.begin(item.nodeid)
        item.add_report_section("setup", "seed", f"DRF_FAST_TEST_SEED={like_gpu.SEED}")


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    """Those of the C++ core that this machine has, for ``use_isa``; afterwards it has its own."""
    from drf_fast.backends.native import library

    def used(name: str) -> str:
        core.use_isa(name)
        return core.build_info()["isa"]

    if not library.available():
        pytest.skip(library.why_not() or "needs the C++ core")
    core = library.load()
    yield [name for name in ("baseline", "avx2", "avx512") if used(name) == name]
    core.use_isa(os.environ.get("DRF_FAST_ISA", ""))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on one backend, without a fallback."""
    with drf_fast.use_backend(request.param):
        yield request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if kernel_sessions.SHARE > 1:
        runs = kernel_sessions.chosen([item.nodeid for item in items])
        config.hook.pytest_deselected(
            items=[item for item, run in zip(items, runs, strict=True) if not run]
        )
        items[:] = [item for item, run in zip(items, runs, strict=True) if run]
    if KERNELS:  # tests that run no kernel belong to the ordinary session
        kernels = Path(__file__).parent / "kernels"
        chosen = [
            item
            for item in items
            if item.path.is_relative_to(kernels) or "backend" in getattr(item, "fixturenames", ())
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
