"""What the CUDA C++ kernels move and compute: their part of benchmarks/kernel_costs.py.

nvcc compiles them for sm_90, and the tools that Triton ships read the machine code. Their source
runs on the CPU, one thread for each CUDA thread, where cuda_traffic.cpp counts the bytes.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import kernel_model
import sass
from kernel_model import CLOCK, COPY, PROCESSORS, WARPS, Cost

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent
_PREFIX = "_ZN8drf_fast4cuda"


@dataclass(frozen=True)
class Call:
    """``vote`` on logits (rows, classes) of one image, or a bound of as many counts as rows."""

    operation: str
    rows: int
    classes: int = 0

    @property
    def minimum_bytes(self) -> int:
        return self.rows * (4 * self.classes or 24)  # or two counts in, one number out

    @property
    def lanes(self) -> int:
        """Threads that share a row."""
        return 1 if not self.classes else 4 if self.classes <= 32 else 32

    @property
    def warps(self) -> int:
        """Of a block."""
        return 8 if self.classes else 2

    @property
    def symbol(self) -> str:
        if self.classes:
            return f"{_PREFIX}11vote_kernelILi{self.lanes}Ef"
        name = f"{self.operation}_kernel"
        return f"{_PREFIX}{len(name)}{name}"


CALLS = (
    Call("vote", 10_000, 10),
    Call("vote", 10_000, 100),
    Call("vote", 10_000, 1000),
    Call("vote", 100, 100_000),
    Call("clopper_pearson_lower", 10_000),
    Call("certified_radius", 10_000),
)


def traffic(folder: Path) -> dict[tuple[str, int], float]:
    """(operation, classes) -> bytes moved for each byte that has to be."""
    folders = [ROOT / "tests" / "cuda_on_cpu", ROOT / "csrc", BENCHMARKS]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", *(f"-I{place}" for place in folders)]
    objects = []
    for name, more in (("cuda_traffic", ["-fsanitize=thread"]), ("cuda_traffic_hooks", [])):
        objects.append(folder / f"{name}.o")
        source = BENCHMARKS / f"{name}.cpp"
        subprocess.run(["g++", *flags, *more, "-c", source, "-o", objects[-1]], check=True)
    program = folder / "cuda_traffic"
    subprocess.run(["g++", "-pthread", *objects, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in printed.splitlines():
        name, *numbers = line.split()
        rows, classes, loaded, stored = map(int, numbers)
        found[name, classes] = (loaded + stored) / Call(name, rows, classes).minimum_bytes
    return found


def compiled(operation: str, folder: Path) -> bytes:
    """The machine code of one source for sm_90, by the flags of setup.py that shape it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    source, out = ROOT / "csrc" / "cuda" / f"{operation}.cu", folder / f"{operation}.cubin"
    flags = ["-cubin", "-arch=sm_90", "-O3", "-std=c++17", "--fmad=false", f"-I{ROOT / 'csrc'}"]
    subprocess.run([nvcc, *flags, source, "-o", out], check=True)
    return out.read_bytes()


def executions(call: Call, code: list[kernel_model.Place]) -> dict[int, float]:
    """Of ``vote``, for one row: the loop over its classes by its rounds, all else once.

    The rounds of a bound's loops depend on its counts: each instruction once, a lower bound.
    """
    times = {one.region: 1.0 for one in code}
    if call.classes:
        loads = [one.region for one in code if one.opcode.startswith("LDG")]
        unrolled = max(set(loads), key=loads.count)
        times[unrolled] = math.ceil(call.classes / call.lanes) // loads.count(unrolled)
    return times


def cost(call: Call, cubin: bytes, moved: float) -> Cost:
    usage = sass.run_tool("cuobjdump", cubin, "-res-usage")
    found = re.search(rf"Function {call.symbol}.*?REG:(\d+).*?SHARED:(\d+)", usage, re.DOTALL)
    assert found, usage
    registers, shared = int(found[1]), int(found[2])
    code = kernel_model.disassembled(cubin, call.symbol)
    cycles, arithmetic = kernel_model.work(code, executions(call, code))
    warps = math.ceil(call.rows * call.lanes / 32)
    resident = kernel_model.resident_programs(registers, shared, call.warps)
    each = math.ceil(warps / (4 * PROCESSORS))  # warps of a quarter of a multiprocessor
    bytes_moved = round(moved * call.minimum_bytes)
    bandwidth = min(COPY, min(math.ceil(warps / call.warps), PROCESSORS) * 64 * CLOCK)
    return Cost(
        call.operation,
        registers,
        resident * call.warps / WARPS,
        arithmetic * 32 * warps,
        bytes_moved / bandwidth,
        each * cycles / CLOCK,
        bytes_moved,
    )


def costs() -> list[tuple[Call, Cost]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        moved = traffic(folder)
        binaries = {call.operation: compiled(call.operation, folder) for call in CALLS}
    return [
        (call, cost(call, binaries[call.operation], moved[call.operation, call.classes]))
        for call in CALLS
    ]
