"""The memory accesses of a kernel: Triton's interpreter on traced memory, real or absent.

``watch`` records every access of the kernels that run inside it. ``run`` executes chosen programs
of a recorded launch whose tensors are on the ``meta`` device: stores are dropped and loads give
zeros, so that the addresses of the last program of a launch over terabytes can be checked. Both
count the bytes that a kernel requests, independently of values.

The process must have TRITON_INTERPRET=1 in its environment before triton is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter

from drf_fast import kernels
from drf_fast.kernels.launch import Launch

REGION = 1 << 44  # each storage of a launch on absent memory has a range of addresses of this size
_KERNELS = Path(kernels.__path__[0])
_builder = interpreter.interpreter_builder


class Access(NamedTuple):
    """One load or store of one program: byte addresses of the lanes that its mask enables."""

    program: int
    kind: str  # "load", "store" or "atomic"
    addresses: np.ndarray
    width: int
    lanes: int  # including the masked ones
    place: tuple[tuple[str, int], ...]  # files and lines of the kernels, the innermost first

    @property
    def bytes(self) -> int:
        return self.addresses.size * self.width


class Span(NamedTuple):
    """The bytes that a tensor argument may touch: [start, stop)."""

    start: int
    stop: int


@dataclass
class Trace:
    """The accesses of one launch."""

    name: str
    spans: list[Span]
    accesses: list[Access] = field(default_factory=list)

    def bytes(self, kind: str) -> int:
        return sum(access.bytes for access in self.accesses if access.kind == kind)

    def _grain(self) -> int:
        """The smallest width of an access, which divides all other widths and all addresses."""
        return min((access.width for access in self.accesses), default=1)

    def _flat(self, *kinds: str) -> tuple[np.ndarray, np.ndarray]:
        """Addresses of grains and their programs, sorted by address."""
        grain = self._grain()
        chosen = [a for a in self.accesses if a.kind in kinds and a.addresses.size]
        if not chosen:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        addresses = np.concatenate(
            [(a.addresses[:, None] + np.arange(0, a.width, grain)).reshape(-1) for a in chosen]
        )
        programs = np.concatenate([np.full(a.bytes // grain, a.program, np.int64) for a in chosen])
        order = np.argsort(addresses, kind="stable")
        return addresses[order], programs[order]

    def distinct_bytes(self, kind: str) -> int:
        return int(np.unique(self._flat(kind)[0]).size) * self._grain()

    def moved_bytes(self) -> int:
        """Traffic in bytes between memory and an unlimited cache."""
        stored = np.unique(self._flat("store")[0])
        loaded = np.setdiff1d(self._flat("load")[0], stored)
        return int(loaded.size + stored.size) * self._grain()

    def outside(self) -> list[Access]:
        """Accesses with an address in none of the tensors that the launch was given."""

        def inside(access: Access) -> np.ndarray:
            first, last = access.addresses, access.addresses + access.width
            return np.any([(s.start <= first) & (last <= s.stop) for s in self.spans], axis=0)

        return [a for a in self.accesses if a.addresses.size and not inside(a).all()]

    def races(self) -> list[str]:
        """Bytes that one program writes while another reads or writes them."""
        found = []
        addresses, programs = self._flat("store", "atomic")
        twice = (addresses[1:] == addresses[:-1]) & (programs[1:] != programs[:-1])
        if twice.any():
            where = int(np.argmax(twice))
            pair = (int(programs[where]), int(programs[where + 1]))
            found.append(f"{self.name}: programs {pair[0]} and {pair[1]} store to one address")
        read, readers = self._flat("load")
        if addresses.size and read.size:
            place = np.searchsorted(addresses, read).clip(max=addresses.size - 1)
            clash = (addresses[place] == read) & (programs[place] != readers)
            if clash.any():
                where = int(np.argmax(clash))
                writer, reader = int(programs[place[where]]), int(readers[where])
                found.append(f"{self.name}: program {reader} loads what {writer} stores")
        return found


# ---------------------------------------------------------------------------------------- tracing


def _place_in_code() -> tuple[tuple[str, int], ...]:
    frame, places = sys._getframe(), []
    while frame is not None:
        if Path(frame.f_code.co_filename).parent == _KERNELS and frame.f_code.co_name != "launch":
            places.append((Path(frame.f_code.co_filename).name, frame.f_lineno))
        if frame.f_code.co_name == "__call__" and "grid_idx" in frame.f_code.co_names:
            break
        frame = frame.f_back
    return tuple(places)


def _noting(trace: Callable[[], Trace | None], absent: bool) -> contextlib.ExitStack:
    """Patches of the interpreter's memory operations that record each access in ``trace()``."""
    load, store = _builder.create_masked_load, _builder.create_masked_store
    swap, update = _builder.create_atomic_cas, _builder.create_atomic_rmw

    def note(kind: str, pointers: Any, mask: Any) -> None:
        into = trace()
        if into is None:
            return
        addresses, lanes = np.broadcast_arrays(pointers.data, mask)
        width = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        chosen = addresses[lanes.astype(bool)].astype(np.int64).reshape(-1)
        access = Access(_builder.grid_idx[0], kind, chosen, width, addresses.size, _place_in_code())
        into.accesses.append(access)

    def noted_load(pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        note("load", pointers, mask.data)
        if not absent:
            return load(pointers, mask, other, *options)
        element = pointers.get_element_ty()
        zeros = np.zeros(pointers.data.shape, interpreter._get_np_dtype(element))
        if other is not None:
            zeros = np.where(mask.data, zeros, other.data)
        return interpreter.TensorHandle(zeros, element)

    def noted_store(pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
        note("store", pointers, mask.data)
        return None if absent else store(pointers, value, mask, *options)

    def noted_swap(pointers: Any, *arguments: Any) -> Any:
        note("atomic", pointers, np.ones_like(pointers.data, dtype=bool))
        return swap(pointers, *arguments)

    def noted_update(operation: Any, pointers: Any, *arguments: Any) -> Any:
        note("atomic", pointers, np.ones_like(pointers.data, dtype=bool))
        return update(operation, pointers, *arguments)

    stack = contextlib.ExitStack()
    for name, function in {
        "create_masked_load": noted_load,
        "create_masked_store": noted_store,
        "create_atomic_cas": noted_swap,
        "create_atomic_rmw": noted_update,
    }.items():
        stack.enter_context(mock.patch.object(_builder, name, function))
    return stack


def _span(tensor: torch.Tensor, address: int) -> Span:
    if not tensor.numel():
        return Span(address, address)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return Span(address, address + (last + 1) * tensor.element_size())


@contextlib.contextmanager
def watch() -> Iterator[list[Trace]]:
    """Record the accesses of the kernels that run inside the block, one trace per launch."""
    traces: list[Trace] = []
    call = interpreter.GridExecutor.__call__

    def traced(self: Any, *arguments: Any, **options: Any) -> Any:
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        spans = [_span(value, value.data_ptr()) for value in tensors]
        traces.append(Trace(self.fn.__name__, spans))
        return call(self, *arguments, **options)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", traced),
        # The interpreter would otherwise work on copies of CUDA tensors only; on CPU it does not.
        _noting(lambda: traces[-1] if traces else None, absent=False),
    ):
        yield traces


# ----------------------------------------------------------------------------------- absent memory


class _Absent:
    """Stands for a tensor without memory where Triton asks for an address and a dtype."""

    def __init__(self, tensor: torch.Tensor, address: int) -> None:
        self.dtype, self._address = tensor.dtype, address

    def data_ptr(self) -> int:
        return self._address


def _located(arguments: Iterable[Any]) -> tuple[list[Any], list[Span]]:
    """Addresses for the tensors among ``arguments``; those that share a storage stay together."""
    storages: dict[int, int] = {}
    placed, spans = [], []
    for value in arguments:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()._cdata
            base = storages.setdefault(storage, REGION * (len(storages) + 1))
            size = value.element_size()
            address = base + value.storage_offset() * size
            spans.append(_span(value, address))
            value = _Absent(value, address)
        placed.append(value)
    return placed, spans


def run(launch: Launch, programs: Sequence[int]) -> Trace:
    """The accesses of the given programs of a launch, on tensors without memory."""
    arguments, spans = _located(launch.arguments)
    trace = Trace(launch.kernel.fn.__name__, spans)
    executor = interpreter.GridExecutor

    def chosen(x: int, y: int, z: int) -> None:
        _builder.grid_idx = (programs[x], y, z)

    def full(*sizes: int) -> None:
        _builder.grid_dim = (launch.programs, 1, 1)

    with (
        _noting(lambda: trace, absent=True),
        mock.patch.object(executor, "_init_args_hst", lambda self, args, kwargs: (args, kwargs)),
        mock.patch.object(executor, "_restore_args_dev", lambda self, *arguments: None),
        mock.patch.object(_builder, "set_grid_idx", chosen),
        mock.patch.object(_builder, "set_grid_dim", full),
        np.errstate(all="ignore"),
    ):
        launch.kernel[(len(programs),)](*arguments, **launch.constants)
    return trace


def sample(programs: int, at_most: int) -> tuple[int, ...]:
    """All programs, or ``at_most`` of them evenly spread, the first and the last included.

    A prime ``at_most`` avoids sampling the same block of every image.
    """
    if programs <= at_most:
        return tuple(range(programs))
    return tuple(round(i * (programs - 1) / (at_most - 1)) for i in range(at_most))
