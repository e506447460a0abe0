"""What every benchmark records beside its time: versions, device, bytes moved, bandwidth.

Tensors are made on the GPU where there is one, and timed there as ``gpu_clock.py`` says; else on
the CPU, by the wall clock.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import gpu_clock
import pytest
import torch

import drf_fast
from drf_fast.backends.native import library

Run = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        for item in items:  # tests/ may be collected too: its tests use no timer
            item.add_marker(pytest.mark.benchmark(timer=gpu_clock.CLOCK))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def on_the_device(device: torch.device) -> Iterator[None]:
    """Benchmarks make their tensors without naming a device."""
    if device.type == "cpu":
        yield
        return
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="session")
def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that does not fit a cache."""
    on_cpu = device.type == "cpu"
    source = torch.zeros((64 if on_cpu else 256) << 20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    if on_cpu:
        best = float("inf")
        for _ in range(7):
            start = time.perf_counter()
            target.copy_(source)
            best = min(best, time.perf_counter() - start)
    else:
        best = min(gpu_clock.durations(lambda: target.copy_(source), rounds=20))
    return 2 * source.numel() * source.element_size() / best


@pytest.fixture(scope="session")
def machine(device: torch.device) -> dict[str, Any]:
    build = library.load().build_info() if library.available() else {}
    return {
        "device": device.type,
        **(gpu_clock.describe() if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "isa": build.get("isa", "none"),
        "forced_isa": os.environ.get("DRF_FAST_ISA", ""),
        "torch": torch.__version__,
        "drf_fast": drf_fast.__version__,
        "python": platform.python_version(),
    }


@pytest.fixture
def run(
    benchmark: Any, copy_bandwidth: float, machine: dict[str, Any], device: torch.device
) -> Run:
    """Time ``function`` as ``provider`` of ``group``; ``moved``: least bytes that it moves.

    ``rounds`` is for calls of many seconds: so many rounds, without calibration.
    """

    def timed(
        group: str,
        provider: str,
        function: Callable[[], Any],
        moved: int,
        rounds: int | None = None,
    ) -> None:
        function()  # compiles, warms up
        benchmark.group = group
        # SciPy runs on the CPU, wherever torch runs.
        if device.type == "cuda" and provider != "scipy":
            gpu_clock.benchmark(benchmark, function)
        elif device.type == "cuda":
            gpu_clock.benchmark_on_cpu(benchmark, function)
        elif rounds is not None:
            benchmark.pedantic(function, rounds=rounds)
        else:
            benchmark(function)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            machine,
            provider=provider,
            bytes=moved,
            gigabytes_per_second=moved / seconds / 1e9,
            share_of_copy=moved / seconds / copy_bandwidth,
        )
        peak = machine.get("peak_gigabytes_per_second")
        if peak:
            benchmark.extra_info["share_of_peak"] = moved / seconds / 1e9 / peak

    return timed


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name is private
