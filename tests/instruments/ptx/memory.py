"""The memory of a launch and its programs, and the accesses to each byte since the last barrier."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
LOCAL = 0x6000_0000_0000  # generic address of a thread's local memory


class FaultError(Exception):
    """Undefined behaviour on a GPU."""


@dataclass
class Span:
    """The bytes of one tensor's storage; accesses around them are faults."""

    name: str
    start: int
    bytes: Array
    writer: Array | None = None  # of each byte: thread of the launch + 1, and when it wrote
    time: Array | None = None


@dataclass
class Memory:
    """Storages at addresses that are multiples of 512, far from each other."""

    spans: list[Span] = field(default_factory=list)
    _next: int = 0x7F00_0000_0000

    def add(self, storage: Array, name: str = "tensor") -> int:
        """The address of a storage (uint8)."""
        start = self._next
        self._next += -(-storage.nbytes // 512) * 512 + 4096
        self.spans.append(Span(name, start, storage))
        return start

    def find(self, addresses: Array, width: int, what: str) -> Span:
        first, last = int(addresses.min()), int(addresses.max()) + width
        for span in self.spans:
            if span.start <= first and last <= span.start + span.bytes.size:
                return span
        near = [
            s.name for s in self.spans if s.start - 2048 <= first < s.start + s.bytes.size + 4096
        ]
        raise FaultError(
            f"{what}: bytes {first:#x}..{last:#x} are outside of {near or 'all tensors'}"
        )


def watch_global(
    span: Span, at: Array, width: int, threads: Array, each: int, time: Array, store: bool
) -> None:
    """Record an access at bytes ``at`` of the span by ``threads`` of the launch, and check it."""
    if span.writer is None or span.time is None:
        span.writer = np.zeros(span.bytes.size, np.int64)
        span.time = np.zeros(span.bytes.size, np.int64)
    grains = at[:, None] + np.arange(width)
    last = span.writer[grains]
    other = (last != 0) & (last - 1 != threads[:, None])
    if other.any():
        same = (last - 1) // each == (threads // each)[:, None]
        kind = "store to what" if store else "load of what"
        if (other & ~same).any():
            raise FaultError(f"{span.name}: {kind} another program has stored")
        if (other & (span.time[grains] == time[:, None])).any():
            raise FaultError(
                f"{span.name}: {kind} another thread has stored, without a barrier between"
            )
    if store:
        if len(np.unique(at)) < at.size:
            programs = len(np.unique(threads // each)) > 1
            what = "another program has stored" if programs else "another thread has stored"
            raise FaultError(f"{span.name}: store at once to what {what}")
        span.writer[grains] = threads[:, None] + 1
        span.time[grains] = time[:, None]


class Shared:
    """Shared memory of some programs, with arbitrary initial bytes."""

    def __init__(self, programs: int, size: int) -> None:
        self.bytes = np.full((programs, max(size, 1)), 0xAB, np.uint8)
        self.size = size
        # Of each byte: warp + 1 of its last writer and reader (-1: several), and when.
        shape = self.bytes.shape
        self.writer, self.reader = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
        self.written, self.read = np.zeros(shape, np.int32), np.zeros(shape, np.int32)

    def places(
        self, program: Array, at: Array, width: int, warp: Array, time: Array, store: bool
    ) -> tuple[Array, Array]:
        """Indices of the bytes of an access, after a check for conflicts with earlier ones."""
        if (at % width).any():
            raise FaultError(f"shared memory: addresses are no multiples of {width}")
        if at.min() < 0 or at.max() + width > self.size:
            raise FaultError(f"shared memory: bytes {at.min()}..{at.max() + width} of {self.size}")
        where = program[:, None], at[:, None] + np.arange(width)
        warps, times = (warp + 1)[:, None], time[:, None]

        def clash(who: Array, when: Array) -> bool:
            last = who[where]
            return bool(((last != 0) & (last != warps) & (when[where] == times)).any())

        if clash(self.writer, self.written):
            verb = "overwritten" if store else "read"
            raise FaultError(f"shared memory: {verb} after another warp's store, without a barrier")
        if store:
            if clash(self.reader, self.read):
                raise FaultError(
                    "shared memory: overwritten after another warp's load, without a barrier"
                )
            self.writer[where], self.written[where] = warps, times
        else:
            before = self.reader[where]
            several = (before != 0) & (before != warps) & (self.read[where] == times)
            self.reader[where] = np.where(several, -1, warps)
            self.read[where] = times
        return where


def gathered(flat: Array, at: Array | tuple[Array, Array], dtype: np.dtype) -> Array:
    """Numbers of ``dtype`` from the bytes at ``at`` (numbers, bytes of each)."""
    return np.ascontiguousarray(flat[at]).view(dtype).reshape(-1)


def scattered(flat: Array, at: Array | tuple[Array, Array], value: Array) -> None:
    flat[at] = np.ascontiguousarray(value).view(np.uint8).reshape(-1, value.itemsize)
