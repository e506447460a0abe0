"""Threads that run a program, many at a time and in lockstep as far as possible.

Threads that diverge run separately, those in the first block first, and reconverge where their
paths meet. Collective instructions (barriers, exchanges within a warp) wait for all their threads:
a block that the compiler has placed after its successors would otherwise look like divergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from ptx.arithmetic import DTYPES
from ptx.instructions import Step, step
from ptx.memory import LOCAL, FaultError, Memory, Shared
from ptx.program import Instruction, Program

Array = np.ndarray
_THREADS = 4096  # at a time
_LONGEST = 3_000_000  # blocks that a program may run
_steps: WeakKeyDictionary[Program, list[list[Step]]] = WeakKeyDictionary()


@dataclass
class Counts:
    """Counts of one launch: instructions of warps, exchanges, bytes that threads accessed."""

    programs: int = 0
    instructions: int = 0
    exchanges: int = 0
    shared_bytes: int = 0
    global_bytes: int = 0


def execute(
    program: Program,
    programs: int,
    warps: int,
    parameters: Mapping[str, int],
    memory: Memory,
    shared: int,
) -> Counts:
    """Run ``programs`` programs of ``warps`` warps with ``shared`` bytes of shared memory each."""
    counts = Counts(programs)
    together = max(1, _THREADS // (32 * warps))
    if program not in _steps:
        _steps[program] = [[step(one) for one in block.instructions] for block in program.blocks]
    with np.errstate(all="ignore"):
        for first in range(0, programs, together):
            number = min(together, programs - first)
            threads = Threads(program, first, number, warps, parameters, memory, shared, counts)
            threads.run(_steps[program])
    return counts


class Threads:
    """The threads of some programs: their registers, memory and active set."""

    def __init__(
        self,
        program: Program,
        first: int,
        programs: int,
        warps: int,
        parameters: Mapping[str, int],
        memory: Memory,
        shared: int,
        counts: Counts,
    ) -> None:
        self.program, self.parameters, self.memory, self.counts = (
            program,
            parameters,
            memory,
            counts,
        )
        self.each, self.number = 32 * warps, 32 * warps * programs
        self.thread = np.arange(self.number)
        self.of_program = self.thread // self.each
        self.first = first
        self.registers: dict[str, Array] = {
            "%tid.x": (self.thread % self.each).astype(np.uint32),
            "%ctaid.x": (self.of_program + first).astype(np.uint32),
            "%laneid": (self.thread % 32).astype(np.uint32),
            **{
                f"{name}.{axis}": np.zeros(self.number, np.uint32)
                for name in ("%tid", "%ctaid")
                for axis in "yz"
            },
        }
        self.time = np.zeros(programs, np.int32)  # barriers that a program has passed
        self.shared = Shared(programs, shared)
        self.local = np.full((self.number, max(program.local, 1)), 0xAB, np.uint8)
        self.active: Array | None = None  # indices of the threads that run; None: all

    # ------------------------------------------------------------------------------- registers

    @property
    def running(self) -> Array:
        return self.thread if self.active is None else self.active

    def get(self, name: str, kind: str) -> Array:
        """An operand's values for the running threads; one value if it is a constant."""
        dtype = DTYPES[kind]
        if name.startswith("!"):
            return ~self.get(name[1:], kind)
        if name in self.registers:
            value = self.registers[name]
            value = value if self.active is None else value[self.active]
        elif name.startswith("%") and name not in self.program.written:
            # A register that is never written stands for an undefined value, as unselected bytes.
            value = np.frombuffer(b"\xab" * dtype.itemsize, dtype)
        elif name.startswith("%"):
            raise FaultError(f"register {name} is read before it is written")
        elif name.startswith(("0f", "0d")):
            value = np.array([int(name[2:], 16)], np.uint32 if name[1] == "f" else np.uint64)
        elif name.startswith("__local_depot"):
            value = np.array([LOCAL], np.uint64)
        elif name.startswith("global_smem"):
            value = np.array([0], np.uint64)
        else:
            value = np.array([int(name.rstrip("U"), 0) & (2**64 - 1)], np.uint64)
        if "b" in (dtype.kind, value.dtype.kind):
            return value.astype(bool)
        if value.dtype.itemsize != dtype.itemsize:
            value = value.astype(f"u{dtype.itemsize}")
        return value.view(dtype)

    def put(self, name: str, value: Array) -> None:
        """Set a register of the running threads to the bits of ``value``, extended to its width."""
        if name == "_":
            return
        width = self.program.width(name)
        if width > 1:
            if value.dtype.kind == "f":
                value = value.view(f"u{value.itemsize}")
            value = value.astype(f"i{width // 8}").view(f"u{width // 8}")
        if self.active is None:
            self.registers[name] = np.ascontiguousarray(np.broadcast_to(value, self.number))
        else:
            before = self.registers.get(name)
            whole = np.zeros(self.number, value.dtype) if before is None else before.copy()
            whole[self.active] = value
            self.registers[name] = whole

    # ------------------------------------------------------------------------------------ steps

    def run(self, steps: list[list[Step]]) -> None:
        blocks, end = self.program.blocks, len(self.program.blocks) - 1
        place = np.zeros(self.number, np.int64)
        for _ in range(_LONGEST):
            at, chosen = self._next(place, end)
            if at == end:
                return
            self.active = None if len(chosen) == self.number else chosen
            following: Array | int = at + 1
            for one, change in zip(blocks[at].instructions, steps[at], strict=True):
                self._count(one)
                if one.leaves:
                    target = self.program.labels[one.operands[0]] if one.parts[0] == "bra" else end
                    following = target
                    if one.guard:
                        taken = np.broadcast_to(self.get(one.guard, "pred"), len(chosen))
                        following = np.where(taken, target, at + 1)
                elif one.guard is None:
                    change(self)
                else:
                    everyone, taken = self.active, self.get(one.guard, "pred")
                    self.active = self.running[np.broadcast_to(taken, len(chosen))]
                    if len(self.active):
                        change(self)
                    self.active = everyone
            place[chosen] = following
        raise FaultError("a program that does not end")

    def _next(self, place: Array, end: int) -> tuple[int, Array]:
        """The first block in which threads can go on, and these threads."""
        if (place == place[0]).all():
            return int(place[0]), self.thread
        for at in np.unique(place[place != end]):
            here = place == at
            gate = self.program.blocks[at].gate
            if gate is not None:
                size = self.each if gate == "program" else 32
                here = np.repeat(here.reshape(-1, size).all(1), size)
            if here.any():
                return int(at), np.flatnonzero(here)
        waiting = self.program.blocks[int(place[place != end][0])].instructions[0]
        raise FaultError(f"not all threads arrive at {waiting}: it is in divergent code")

    def _count(self, one: Instruction) -> None:
        warps = self.number // 32 if self.active is None else len(np.unique(self.active // 32))
        self.counts.instructions += warps
        if one.gate == "warp" or one.gate == "program":
            self.counts.exchanges += warps
