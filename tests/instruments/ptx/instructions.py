"""The effect of each instruction on the threads that run it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ptx.arithmetic import DTYPES, Meaning, meaning
from ptx.memory import LOCAL, FaultError, gathered, scattered, watch_global
from ptx.program import Instruction

if TYPE_CHECKING:
    from ptx.machine import Threads

Array = np.ndarray
Step = Callable[["Threads"], None]
_ADDRESS = re.compile(r"^\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")


def step(one: Instruction) -> Step:
    """The effect of the instruction, as a function of the running threads."""
    parts = one.parts
    if one.leaves:
        return lambda threads: None
    if parts[0] in ("ld", "st"):
        return _access(one)
    if one.gate is not None:
        return _together(one)
    if parts[0] == "mov" and one.operands[0].startswith("{"):
        return _unpack(one)
    if parts[0] == "mov" and one.operands[1].startswith("{"):
        return _pack(one)
    found = meaning(parts)
    if found is None or len(found.sources) != len(one.operands) - 1:
        return _unknown(one)
    return _arithmetic(one, found)


def _unknown(one: Instruction) -> Step:
    def run(threads: Threads) -> None:
        raise NotImplementedError(str(one))

    return run


def _arithmetic(one: Instruction, found: Meaning) -> Step:
    result, dtype = one.operands[0], DTYPES[found.result]
    operands = tuple(zip(one.operands[1:], found.sources, strict=True))

    def run(threads: Threads) -> None:
        value = found.function(*(threads.get(name, kind) for name, kind in operands))
        threads.put(result, np.asarray(value, dtype))

    return run


def names_in(operand: str) -> list[str]:
    return [name.strip() for name in operand.strip("{}").split(",")]


def _unpack(one: Instruction) -> Step:
    names, kind = names_in(one.operands[0]), one.parts[-1]
    part = DTYPES[f"u{int(kind[1:]) // len(names)}"]

    def run(threads: Threads) -> None:
        value = np.ascontiguousarray(threads.get(one.operands[1], kind)).reshape(-1, 1).view(part)
        for at, name in enumerate(names):
            threads.put(name, value[:, at])

    return run


def _pack(one: Instruction) -> Step:
    names, kind = names_in(one.operands[1]), one.parts[-1]
    part = f"u{int(kind[1:]) // len(names)}"

    def run(threads: Threads) -> None:
        values = np.broadcast_arrays(*(threads.get(name, part) for name in names))
        threads.put(one.operands[0], np.stack(values, 1).view(DTYPES[kind]).reshape(-1))

    return run


def _access(one: Instruction) -> Step:
    """ld and st, of one number or a vector of them."""
    parts, load = one.parts, one.parts[0] == "ld"
    dtype = DTYPES[parts[-1]]
    data, place = one.operands if load else one.operands[::-1]
    names, address = names_in(data), _ADDRESS.match(place)
    assert address is not None, str(one)
    base, offset = address[1], int(address[2] or "0", 0)
    width = dtype.itemsize * len(names)

    def parameter(threads: Threads) -> None:
        bits = threads.parameters[base] & (2**64 - 1)
        threads.put(names[0], np.array([bits], np.uint64).astype(dtype))

    def run(threads: Threads) -> None:
        number = len(threads.running)
        at = np.broadcast_to(threads.get(base, "u64").astype(np.int64) + offset, number)
        flat, where = _located(threads, parts, at, width, not load)
        for index, name in enumerate(names):
            rows = slice(index * dtype.itemsize, (index + 1) * dtype.itemsize)
            here = (where[0], where[1][:, rows]) if isinstance(where, tuple) else where[:, rows]
            if load:
                threads.put(name, gathered(flat, here, dtype))
            else:
                value = np.broadcast_to(threads.get(name, parts[-1]), number)
                scattered(flat, here, value)

    return parameter if parts[1] == "param" else run


def _located(
    threads: Threads, parts: list[str], at: Array, width: int, store: bool
) -> tuple[Array, Array | tuple[Array, Array]]:
    """The memory of an access, and the indices of its bytes there (threads, width)."""
    running = threads.running
    programs = threads.of_program[running]
    time = threads.time[programs]
    if "shared" in parts:
        threads.counts.shared_bytes += at.size * width
        warp = running % threads.each // 32
        return threads.shared.bytes, threads.shared.places(programs, at, width, warp, time, store)
    if (at % width).any():
        raise FaultError(f"{'.'.join(parts)}: addresses are no multiples of {width}")
    if "local" in parts or ((at >= LOCAL).all() and (at < LOCAL + threads.local.shape[1]).all()):
        return threads.local, (running[:, None], (at - LOCAL)[:, None] + np.arange(width))
    threads.counts.global_bytes += at.size * width
    span = threads.memory.find(at, width, ".".join(parts))
    at = at - span.start
    in_launch = running + threads.first * threads.each
    watch_global(span, at, width, in_launch, threads.each, time, store)
    return span.bytes, at[:, None] + np.arange(width)


# -------------------------------------------------------------------------------- collective ones


def _together(one: Instruction) -> Step:
    base = one.parts[0]
    if one.gate == "program":

        def barrier(threads: Threads) -> None:
            threads.time[np.unique(threads.of_program[threads.running])] += 1

        return barrier
    together = {"shfl": _shuffle, "redux": _redux, "vote": _vote}.get(base)
    if base in ("ldmatrix", "stmatrix"):
        return _matrices(one)
    return together(one) if together else lambda threads: None  # bar.warp


def _shuffle(one: Instruction) -> Step:
    mode = one.parts[2]
    target, source, distance, clamp = one.operands[:4]
    if "|" in target or int(clamp, 0) not in (31, 0):
        return _unknown(one)

    def run(threads: Threads) -> None:
        value = np.broadcast_to(threads.get(source, "u32"), len(threads.running)).reshape(-1, 32)
        by = np.broadcast_to(threads.get(distance, "u32"), value.size).reshape(-1, 32)
        by, lane = by.astype(np.int64) & 31, np.arange(32)
        place = {"bfly": lane ^ by, "idx": by, "up": lane - by, "down": lane + by}[mode]
        place = np.where((place < 0) | (place > 31), lane, place)
        threads.put(target, np.take_along_axis(value, place, 1).reshape(-1))

    return run


_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _redux(one: Instruction) -> Step:
    reduce, kind = _REDUCTIONS.get(one.parts[2]), one.parts[-1]
    if reduce is None or kind[0] == "f":
        return _unknown(one)

    def run(threads: Threads) -> None:
        value = np.broadcast_to(threads.get(one.operands[1], kind), len(threads.running))
        total = reduce.reduce(value.reshape(-1, 32), axis=1, dtype=value.dtype)
        threads.put(one.operands[0], np.repeat(total, 32))

    return run


def _vote(one: Instruction) -> Step:
    mode = one.parts[2]

    def run(threads: Threads) -> None:
        value = np.broadcast_to(threads.get(one.operands[1], "pred"), len(threads.running))
        lanes = value.reshape(-1, 32)
        result = {
            "any": lanes.any(1),
            "all": lanes.all(1),
            "ballot": np.packbits(lanes, axis=1, bitorder="little").view(np.uint32)[:, 0],
        }[mode]
        threads.put(one.operands[0], np.repeat(result, 32))

    return run


def _matrices(one: Instruction) -> Step:
    """8 x 8 matrices of 16-bit numbers between shared memory and the threads of a warp.

    Thread 8 j + i has the address of row i of matrix j; thread t holds elements 2 (t mod 4) and
    2 (t mod 4) + 1 of row t // 4 of each, or of column t // 4 with .trans.
    """
    load, transposed = one.parts[0] == "ldmatrix", "trans" in one.parts
    data, place = one.operands if load else one.operands[::-1]
    names, address = names_in(data), _ADDRESS.match(place)
    if "m8n8" not in one.parts or address is None or one.parts[-1] != "b16":
        return _unknown(one)
    count, base, offset = len(names), address[1], int(address[2] or "0", 0)

    def run(threads: Threads) -> None:
        running = threads.running
        starts = np.broadcast_to(threads.get(base, "u32").astype(np.int64) + offset, running.size)
        lanes = np.arange(running.size) % 32 < 8 * count
        whose, at = running[lanes], starts[lanes]
        programs = threads.of_program[whose]
        threads.counts.shared_bytes += 16 * at.size
        where = threads.shared.places(
            programs, at, 16, whose % threads.each // 32, threads.time[programs], not load
        )
        if load:
            halves = np.ascontiguousarray(threads.shared.bytes[where]).view(np.uint16)
            matrices = halves.reshape(-1, count, 8, 8)
            matrices = matrices.swapaxes(2, 3) if transposed else matrices
            held = np.ascontiguousarray(matrices).reshape(-1, count, 64).view(np.uint32)
            for index, name in enumerate(names):
                threads.put(name, held[:, index].reshape(-1))
            return
        values = [np.broadcast_to(threads.get(name, "u32"), running.size) for name in names]
        held = np.stack([value.reshape(-1, 32) for value in values], 1)
        matrices = np.ascontiguousarray(held).view(np.uint16).reshape(-1, count, 8, 8)
        matrices = matrices.swapaxes(2, 3) if transposed else matrices
        threads.shared.bytes[where] = np.ascontiguousarray(matrices).reshape(-1, 8).view(np.uint8)

    return run
