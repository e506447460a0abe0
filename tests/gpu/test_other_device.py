"""Tensors on another device than the current one: its streams, its captures, its launches.

No GPU is needed: stand-ins for the few functions of ``torch.cuda`` in use simulate two.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from drf_fast.backends.graphs import captured
from drf_fast.certification import passes
from drf_fast.certification.passes import Votes
from drf_fast.kernels import scalars  # pyright: ignore[reportMissingImports]
from drf_fast.kernels.launch import launch  # pyright: ignore[reportMissingImports]

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
HALF = torch.tensor(0.5, dtype=torch.float64)


class TwoDevices:
    """The current device, and the devices on which a capture is in progress."""

    def __init__(self) -> None:
        self.current = 0
        self.capturing: set[int] = set()
        self.captured: list[tuple[int, int]] = []  # the current device, and that of the stream
        self.pools: list[Any] = []
        self.on: Any = "the user's"  # current stream

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(
        self, graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # else other threads' calls would fail
        where = 0 if stream is None else stream.device.index  # torch's default is on device 0
        self.captured.append((self.current, where))
        self.pools.append(pool)
        with self.device(torch.device("cuda", where)):
            self.capturing.add(where)
            before, self.on = self.on, stream
            yield  # as torch's, which restores nothing if the capture fails
            self.on = before
            self.capturing.remove(where)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.on
        try:
            yield
        finally:
            self.on = before


@pytest.fixture
def two(monkeypatch) -> TwoDevices:
    two = TwoDevices()
    for name, stand_in in {
        "device": two.device,
        "graph": two.graph,
        "stream": two.stream,
        "graph_pool_handle": object,
        "current_device": lambda: two.current,
        "is_current_stream_capturing": lambda: two.current in two.capturing,
        "current_stream": lambda device: SimpleNamespace(cuda_stream=7 + device.index),
        "Stream": lambda device: SimpleNamespace(device=device),
        "synchronize": lambda device: None,
        "CUDAGraph": SimpleNamespace,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(scalars, "_filled", lambda *arguments: ("filled", *arguments))
    monkeypatch.setattr(scalars, "_kept", lambda *arguments: ("kept", *arguments))
    return two


def test_a_capture_on_the_tensors_device_is_seen_from_another(two):
    two.capturing = {1}
    with pytest.raises(RuntimeError, match="0-dim tensors on cuda:1"):
        scalars.on_device(SECOND, HALF)
    with scalars.constants():
        ((kind, device, *_),) = scalars.on_device(SECOND, HALF)
    assert kind == "filled" and device == SECOND  # not cached: its memory belongs to the graph
    assert two.current == 0


def test_a_capture_on_another_device_forbids_nothing(two):
    two.capturing = {0}
    ((kind, device, stream, *_),) = scalars.on_device(SECOND, HALF)
    assert (kind, device, stream) == ("kept", SECOND, 8)


def test_a_graph_is_captured_where_its_tensors_are(two):
    seen = []
    for device in (FIRST, SECOND, FIRST):
        with captured(object(), device):
            seen += [torch.cuda.is_current_stream_capturing(), two.current]
            assert scalars.on_device(device, HALF)[0][0] == "filled"
    assert two.captured == [(0, 0), (1, 1), (0, 0)] and two.current == 0
    assert seen == [True, 0, True, 1, True, 0]


def test_a_pass_of_certification_is_captured_where_its_images_are(two):
    with FakeTensorMode():
        counts = torch.zeros(1, 3, dtype=torch.int64, device=SECOND)
        zero = torch.zeros((), dtype=torch.int64, device=SECOND)
        votes = Votes(torch.zeros(1, 4, device=SECOND), torch.zeros(1, device=SECOND), zero, counts)
        ran = []
        first = passes._Graph(lambda *_: ran.append(1 in two.capturing), votes, 5, None)
        passes._Graph(lambda *_: ran.append(1 in two.capturing), votes, 3, first)
    assert two.captured == [(1, 1), (1, 1)]
    # Once before the capture, on memory of the same alignment, so that kernels are compiled.
    assert ran == [False, True, False, True]
    assert two.pools[0] is two.pools[1] is first.memory.pool  # shared: they run in turn


@pytest.mark.parametrize("ended", [False, True], ids=["torch up to 2.11", "later"])
def test_a_capture_that_fails_leaves_the_stream_and_no_memory(two, monkeypatch, ended):
    log: list[Any] = []

    def end(*where: Any) -> None:
        log.append(("end", *where))
        if ended:
            raise RuntimeError("not currently recording to mempool_id")

    release = lambda *where: log.append(("release", *where))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    before = two.on
    with pytest.raises(ValueError, match="of the network"), captured(object(), SECOND):
        raise ValueError("of the network")
    assert two.on is before and two.current == 0
    of_pool = (1, two.pools[0])
    assert log == [("end", *of_pool)] + ([] if ended else [("release", *of_pool)])


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()), random.random, np.random.rand],
    ids=["torch", "random", "numpy"],
)
def test_random_numbers_of_the_cpu_are_not_captured(two, draw):
    with pytest.raises(RuntimeError, match="drawn on the CPU"), captured(object(), SECOND):
        draw()
    assert two.current == 0


def test_a_kernel_is_launched_with_its_tensors_device_current(two):
    class Kernel:
        fn = SimpleNamespace(__name__="some_kernel")
        ran: list[int] = []  # noqa: RUF012

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: self.ran.append(two.current)

    with FakeTensorMode():
        for device in (FIRST, SECOND):
            launch(Kernel(), 1, torch.empty(3, device=device))
    assert Kernel.ran == [0, 1] and two.current == 0
