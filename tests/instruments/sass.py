"""The machine code of a kernel without a GPU: compiled ahead of time and disassembled.

``compiled`` specialises a recorded launch as Triton's JIT would at that call: pointers and
integers divisible by 16, the integer 1, 64-bit integers. The machine code (SASS) is disassembled
with the cuobjdump that Triton ships.

The process must not have TRITON_INTERPRET=1 in its environment.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import Case
from triton.backends import compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from drf_fast.kernels.launch import Launch, compiler_options

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
    torch.uint8: "u8",
}
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", re.MULTILINE
)


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str  # with its modifiers: LDG.E.128
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]


@dataclass(frozen=True)
class Binary:
    """Machine code of one kernel, and its use of a multiprocessor's resources."""

    name: str
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    code: tuple[Instruction, ...] = field(repr=False)
    warps: int
    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # bytes of a program

    def count(self, pattern: str) -> int:
        """Instructions whose opcode matches the whole regular expression."""
        return sum(bool(re.fullmatch(pattern, one.opcode)) for one in self.code)

    def opcodes(self) -> Counter[str]:
        return Counter(one.opcode for one in self.code)


# ----------------------------------------------------------------------------------- specialising


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Types, constants and divisibilities of a launch's arguments, as the JIT derives them.

    An allocation is aligned to far more than 16 bytes, so a tensor's own alignment follows from
    its offset in its storage.
    """
    types: dict[str, str] = {}
    constants = dict(launch.constants)
    divisible: dict[tuple[int], Any] = {}
    values = iter(launch.arguments)
    for parameter in launch.kernel.params:
        name, index = parameter.name, (parameter.num,)
        if name in constants:
            types[name] = "constexpr"
            continue
        value = next(values)
        if parameter.is_constexpr or value is None:
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = "*" + _TYPES[value.dtype]
            if (
                not parameter.do_not_specialize
                and not parameter.do_not_specialize_on_alignment
                and value.storage_offset() * value.element_size() % 16 == 0
            ):
                divisible[index] = [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            types[name] = "u1"
        elif isinstance(value, float):
            types[name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            types[name], constants[name] = "constexpr", 1
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if (
                value % 16 == 0
                and not parameter.do_not_specialize
                and not parameter.do_not_specialize_on_alignment
            ):
                divisible[index] = [["tt.divisibility", 16]]
    return types, constants, divisible


def source(launch: Launch) -> ASTSource:
    """What Triton's JIT would compile at this launch."""
    types, constants, divisible = signature(launch)
    described = getattr(compiler, "AttrsDescriptor", None)
    if described is None:
        return ASTSource(launch.kernel, types, constants, divisible)
    # Triton 3.2: constants are not among the types, except a 1 that is specialised on.
    ones = [
        parameter
        for parameter in launch.kernel.params
        if types[parameter.name] == "constexpr"
        and parameter.name not in launch.constants
        and not parameter.is_constexpr
    ]
    types = {name: kind for name, kind in types.items() if kind != "constexpr"}
    places = {
        "tt.divisibility": [index for (index,) in divisible],
        "tt.equal_to": [parameter.num for parameter in ones],
    }
    attributes = described.from_dict({"arg_properties": places, "cls": described.__name__})
    order = [parameter.name for parameter in launch.kernel.params]
    types |= {parameter.name: "i32" for parameter in ones}
    types = {name: types[name] for name in order if name in types}
    return ASTSource(launch.kernel, types, constants, attributes)


_binaries: dict[tuple[Any, ...], Binary] = {}


def compiled(launch: Launch, capability: int) -> Binary:
    """The machine code that this launch would run on a GPU of ``capability`` (90 for sm_90)."""
    of_launch = source(launch)
    key = (of_launch.hash(), launch.num_warps, launch.registers, capability)
    if key not in _binaries:
        _binaries[key] = _compile(of_launch, launch.num_warps, launch.registers, capability)
    return _binaries[key]


def of_case(case: Case, capability: int) -> list[tuple[int, Binary]]:
    """Programs and machine code of each launch of a case; the work of a pool's process."""
    return [(launch.programs, compiled(launch, capability)) for launch in case.launches()]


def _compile(source: ASTSource, warps: int, registers: int | None, capability: int) -> Binary:
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options=compiler_options(warps, registers),
    )
    cubin = kernel.asm["cubin"]
    sass = run_tool("cuobjdump", cubin, "-sass")
    usage = run_tool("cuobjdump", cubin, "-res-usage")
    code = tuple(
        Instruction(int(address, 16), opcode, operands)
        for address, opcode, operands in _INSTRUCTION.findall(sass)
    )

    def used(name: str) -> int:
        found = re.search(rf"\b{name}:(\d+)", usage)
        assert found, usage
        return int(found[1])

    return Binary(
        source.name,
        kernel.asm["ptx"],
        cubin,
        code,
        warps,
        used("REG"),
        used("STACK"),
        # Triton's own shared memory is dynamic and not in the binary's figures.
        used("SHARED") + kernel.metadata.shared,
    )


def run_tool(name: str, cubin: bytes, *options: str) -> str:
    """What one of the CUDA tools that Triton ships prints about a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
