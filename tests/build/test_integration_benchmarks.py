"""The benchmarks: their clock on a GPU is what pytest-benchmark reports, their table has ratios."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gpu_clock
import pytest
import report
import test_any_network
import torch


class Gpu:
    """A GPU whose calls take as long as they say; counts what happens on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self) -> None:
        self.log.append("call")
        self.now += 0.002

    def read(self) -> None:
        self.log.append("read")
        self.now += 5.0  # outside the events

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: gpu.log.append("wait"))
    monkeypatch.setattr(gpu_clock, "_cache_reader", lambda: gpu.read)
    return gpu


def test_only_the_call_is_timed_behind_a_cold_cache_and_the_host_waits_once(gpu):
    assert gpu_clock.durations(gpu.call, 3) == pytest.approx([0.002] * 3)
    assert gpu.log == ["read", "call"] * 3 + ["wait"]


def test_pytest_benchmark_reports_the_durations(gpu):
    seconds: list[float] = []

    def pedantic(function: Any, rounds: int, iterations: int, warmup_rounds: int) -> None:
        for _ in range(rounds):
            start = gpu_clock.CLOCK()
            function()
            seconds.append(gpu_clock.CLOCK() - start)

    gpu_clock.benchmark(SimpleNamespace(pedantic=pedantic), gpu.call)
    assert len(seconds) == int(gpu_clock.SECONDS / 0.002)
    assert seconds == pytest.approx([0.002] * len(seconds))


@pytest.mark.gpu
def test_a_copy_reaches_a_share_of_the_peak():
    source = torch.ones(128 << 20, device="cuda")
    target = torch.empty_like(source)
    best = min(gpu_clock.durations(lambda: target.copy_(source), 50))
    gigabytes = 2 * source.numel() * 4 / best / 1e9
    peak = gpu_clock.describe().get("peak_gigabytes_per_second")
    assert gigabytes > 50 and (peak is None or 0.3 * peak < gigabytes <= peak)


def entry(seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds, "gigabytes_per_second": 1.5, "share_of_copy": 0.25, "threads": 2,
        "isa": "avx2", "torch": "2.9", "drf_fast": "0.2.0", "python": "3.12",
    }  # fmt: skip


def test_the_table_has_a_ratio_where_the_baseline_ran():
    found = {
        "vote": {"eager": entry(0.004), "drf_fast": entry(0.001)},
        "bounds": {"drf_fast": entry(0.002)},
    }
    table = report.table(found)
    assert "| vote | drf_fast | 1,000 µs | 4.00 | 1.5 | 25 % |" in table
    assert "| bounds | drf_fast | 2,000 µs | – | 1.5 | 25 % |" in table


def test_the_loop_of_2019_is_a_baseline():
    first, *others = test_any_network.CERTIFIERS
    assert first.startswith(report.BASELINES)
    assert not any(name.startswith(report.BASELINES) for name in others)
