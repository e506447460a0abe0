"""What every benchmark records beside its time: versions, threads, bytes moved, bandwidth."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import drf_fast
from drf_fast import _native

Run = Callable[..., None]


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy that does not fit a cache."""
    source = torch.zeros(64 << 20, dtype=torch.float32)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    build = _native.load().build_info() if _native.available() else {}
    return {
        "threads": torch.get_num_threads(),
        "isa": build.get("isa", "none"),
        "forced_isa": os.environ.get("DRF_FAST_ISA", ""),
        "torch": torch.__version__,
        "drf_fast": drf_fast.__version__,
        "python": platform.python_version(),
    }


@pytest.fixture
def run(benchmark: Any, copy_bandwidth: float, machine: dict[str, Any]) -> Run:
    """Time ``function`` as ``provider`` of ``group``; ``moved`` bytes are the least it can move."""

    def timed(group: str, provider: str, function: Callable[[], Any], moved: int) -> None:
        function()  # compiles, warms up
        benchmark.group = group
        benchmark(function)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            machine,
            provider=provider,
            bytes=moved,
            gigabytes_per_second=moved / seconds / 1e9,
            share_of_copy=moved / seconds / copy_bandwidth,
        )

    return timed


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name is nobody's business
