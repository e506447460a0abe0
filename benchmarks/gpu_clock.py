"""Times on a GPU: CUDA events around each call, which starts with a cold L2 cache.

Before each call the GPU reads a buffer of several times the size of its L2 cache. That evicts
arguments, outputs and temporaries, as rotating through many copies of them would; it leaves clean
lines, so that no call pays for writing back those of another one; and meanwhile the CPU queues the
call's launches, so that the time between the events is that of the GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 0.5  # of calls, for each benchmark
FEWEST, MOST = 20, 1000


class Clock:
    """The timer for pytest-benchmark: it advances only by the durations that it is given."""

    __name__ = "cuda_events"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


def describe() -> dict[str, Any]:
    """The GPU's name and, if torch reports its memory's clock and width, its peak bandwidth."""
    properties = torch.cuda.get_device_properties()
    found: dict[str, Any] = {"gpu": properties.name, "cuda": torch.version.cuda}
    kilohertz = getattr(properties, "memory_clock_rate", None)
    bits = getattr(properties, "memory_bus_width", None)
    if kilohertz and bits:  # double data rate: two transfers a clock
        found["peak_gigabytes_per_second"] = 2 * kilohertz * 1e3 * bits / 8 / 1e9
    return found


def _cache_reader() -> Callable[[], Any]:
    size = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0) or 64 << 20
    buffer = torch.ones(4 * size // 4, dtype=torch.float32, device="cuda")
    return buffer.sum


def durations(function: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of ``rounds`` calls; the host waits once, at the end."""
    empty_cache = _cache_reader()
    events = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        empty_cache()
        start.record()
        function()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def benchmark(fixture: Any, function: Callable[[], Any]) -> None:
    """Hand the durations of as many calls as ``SECONDS`` allow to pytest-benchmark."""
    typical = statistics.median(durations(function, 5))
    _report(fixture, durations(function, min(MOST, max(FEWEST, int(SECONDS / typical)))))


def benchmark_on_cpu(fixture: Any, function: Callable[[], Any]) -> None:
    """The same by the wall clock, for functions that run on the CPU."""
    seconds = []
    while len(seconds) < FEWEST or (sum(seconds) < SECONDS and len(seconds) < MOST):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    _report(fixture, seconds)


def _report(fixture: Any, seconds: list[float]) -> None:
    remaining = iter(seconds)
    fixture.pedantic(
        lambda: CLOCK.advance(next(remaining)), rounds=len(seconds), iterations=1, warmup_rounds=0
    )
