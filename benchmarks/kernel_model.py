"""How long an H100 takes for a launch, predicted from its machine code and its traffic.

The time is the larger of two bounds, plus a constant a launch:

* memory: bytes at 3.0 TB/s, what a copy reaches;
* instructions: what one multiprocessor has to issue, by the throughput of each unit.

How often an instruction is executed follows from its loop: a load or store in the loop moves so
many bytes each time, and the interpreter counted how many that line of the source moves in all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import sass

from drf_fast.kernels.launch import Launch

PROCESSORS, CLOCK = 132, 1.755e9  # an H100 SXM
COPY = 3.0e12  # bytes per second
LATENCY = 5e-6  # of a launch from Python, or by torch
CACHE = 40e6  # bytes of the second-level cache to be counted on
WARPS, _REGISTERS, _SHARED = 64, 65536, 228 * 1024  # of a multiprocessor

# Cycles for which an instruction of a warp occupies a unit of its quarter of a multiprocessor: 32
# lanes over the unit's width. All others issue in one cycle.
_UNITS = {
    "fp32": (r"FADD|FMUL|FFMA|HFMA2|HADD2|HMUL2", 1),
    "imad": (r"IMAD", 2),
    "alu": (
        r"LOP3|SHF|IADD3|VIADD|ISETP|FSETP|SEL|FSEL|FMNMX|VIMNMX|IMNMX|PRMT|LEA|MOV|IABS|PLOP3"
        r"|LOP|F2FP|I2IP|SGXT|BFE|CS2R",
        2,
    ),
    "special": (r"MUFU|I2F|F2I|F2F|I2I|FRND|POPC|FLO", 8),
    "fp64": (r"DADD|DMUL|DFMA|DSETP|DMNMX", 2),
    "memory": (r"LDG|STG|LDS|STS|SHFL|LDC", 4),
}
_CONTROL = re.compile(r"BRA|EXIT|BSSY|BSYNC|CALL|RET|NOP|BAR|WARPSYNC|DEPBAR|S2R|S2UR|MEMBAR")
_LINE = re.compile(r'"([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Place:
    """An instruction with where it comes from: files and lines, the innermost first."""

    opcode: str
    operands: str
    source: tuple[tuple[str, int], ...]
    region: int  # the loop that it is in, by the number of its first instruction; -1 for none


@dataclass(frozen=True)
class Traffic:
    """What the interpreter counted for a launch; see tests/instruments/phantom.py."""

    requested: int  # bytes loaded and stored, whoever had them before
    moved: int  # bytes to and from memory
    of_place: dict[str, float]  # bytes a program, by place in the source, masked lanes included


@dataclass(frozen=True)
class Cost:
    """A launch on an H100."""

    name: str
    registers: int
    occupancy: float  # warps on a multiprocessor, of 64
    arithmetic: float  # instructions of single threads that compute, in the whole launch
    memory_time: float
    issue_time: float
    moved: int  # bytes to and from memory

    @property
    def time(self) -> float:
        return LATENCY + max(self.memory_time, self.issue_time)


def resident_programs(registers: int, shared: int, warps: int) -> int:
    """Programs that one multiprocessor holds at a time."""
    all_registers = -(-registers // 8) * 8 * 32 * warps
    return max(1, min(WARPS // warps, _REGISTERS // all_registers, _SHARED // (shared + 1024), 32))


def key(source: tuple[tuple[str, int], ...]) -> str:
    return " < ".join(f"{name}:{line}" for name, line in source)


# ----------------------------------------------------------------------------------- machine code


def disassembled(cubin: bytes, kernel: str = "") -> list[Place]:
    """The kernel's own instructions, without the subroutines for rare cases.

    Args:
        kernel: how its mangled name begins; the first of the binary by default.
    """
    text = sass.run_tool("nvdisasm", cubin, "-gi", "-c")
    text = text[text.index(f"\n.text.{kernel}") :]
    labels: dict[str, int] = {}
    found: list[tuple[str, str, tuple[tuple[str, int], ...]]] = []
    source: list[tuple[str, int]] = []
    fresh = True
    for line in text.splitlines():
        if line.startswith("$") or line.strip().startswith(".section"):
            break  # subroutines
        if marker := re.match(r"\s*//## File (.*)", line):
            name, number = _LINE.findall(marker[1])[0]
            source = ([] if fresh else source) + [(Path(name).name, int(number))]
            fresh = False
        elif label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif one := re.match(
            r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", line
        ):
            found.append((one[1], one[2], tuple(source)))
            fresh = True
    return _with_regions(found, labels)


def _with_regions(
    found: list[tuple[str, str, tuple[tuple[str, int], ...]]], labels: dict[str, int]
) -> list[Place]:
    loops: dict[int, int] = {}
    for at, (opcode, operands, _) in enumerate(found):
        target = re.search(r"`\((\.L_x_\d+)\)", operands)
        if opcode.startswith("BRA") and target and labels.get(target[1], at + 1) < at:
            first = labels[target[1]]
            loops[first] = max(at, loops.get(first, 0))
    inside = [
        max((first for first, last in loops.items() if first <= at <= last), default=-1)
        for at in range(len(found))
    ]
    return [Place(*one, region) for one, region in zip(found, inside, strict=True)]


def _width(opcode: str) -> int:
    for suffix, width in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1)):
        if suffix in opcode:
            return width
    return 4


def _counted(source: tuple[tuple[str, int], ...], traffic: Traffic) -> str | None:
    """The access in the source that a load or store in the machine code belongs to.

    A masked load is several lines of inline PTX, which shift its line number: so the nearest of the
    large accesses at or before that line, called from the same lines.
    """
    (name, line), callers = source[0], source[1:]
    for before in range(line, line - 25, -1):
        place = key(((name, before), *callers))
        if traffic.of_place.get(place, 0.0) >= 512:
            return place
    return None


def executions(code: list[Place], warps: int, traffic: Traffic) -> dict[int, float]:
    """How often a warp runs through each region: once for the straight code, and its loops."""
    bytes_each: dict[str, Counter[int]] = defaultdict(Counter)
    accessing: set[int] = set()
    for one in code:
        if one.opcode.startswith(("LDG", "STG")):
            accessing.add(one.region)
            place = _counted(one.source, traffic)
            if place is not None:
                bytes_each[place][one.region] += _width(one.opcode) * 32 * warps
    times: dict[int, float] = {-1: 1.0}
    weight: Counter[int] = Counter()  # the access that moves most in a loop tells its rounds best
    for place, regions in bytes_each.items():
        left = traffic.of_place[place] - regions.pop(-1, 0)
        order = regions.most_common()
        # An unrolled loop comes first; its remainder is a loop of fewer loads.
        for at, (region, each) in enumerate(order):
            count = max(0.0, left / each)
            count = float(int(count)) if at + 1 < len(order) else count
            left -= count * each
            if each > weight[region]:
                weight[region], times[region] = each, count
    if unknown := accessing - set(times):
        raise RuntimeError(f"no access was counted for the loops {unknown}: stale line numbers?")
    return {one.region: times.get(one.region, 1.0) for one in code}


def work(code: list[Place], times: dict[int, float]) -> tuple[float, float]:
    """Of a warp: cycles of the unit that is busiest, and instructions that compute."""
    units: Counter[str] = Counter()
    arithmetic = 0.0
    for one in code:
        name, count = one.opcode.partition(".")[0], times[one.region]
        units["issue"] += count
        if _CONTROL.fullmatch(name):
            continue
        for unit, (pattern, cycles) in _UNITS.items():
            if re.fullmatch(pattern, name):
                units[unit] += count * cycles
        if not re.fullmatch(_UNITS["memory"][0] + r"|ULDC", name):
            arithmetic += count
    # Products of integers run in one half of the units for float32, which is 16 lanes wide.
    units["fp32 or imad"] = max(units["imad"], (units.pop("fp32", 0) + units.pop("imad", 0) / 2))
    return max(units.values()), arithmetic


def cost(launch: Launch, traffic: Traffic) -> Cost:
    """Bounds for one launch on an H100."""
    binary = sass.compiled(launch, 90)
    code = disassembled(binary.cubin)
    cycles, arithmetic = work(code, executions(code, binary.warps, traffic))
    busiest = cycles * binary.warps / 4  # four quarters share the warps of a program
    programs = launch.programs
    resident = resident_programs(binary.registers, binary.shared, binary.warps)
    issue_time = -(-programs // PROCESSORS) * busiest / CLOCK
    bandwidth = min(COPY, min(programs, PROCESSORS) * 64 * CLOCK)
    fits = min(programs, resident * PROCESSORS) * traffic.moved / programs < CACHE
    moved = traffic.moved if fits else traffic.requested
    return Cost(
        binary.name,
        binary.registers,
        resident * binary.warps / WARPS,
        arithmetic * 32 * binary.warps * programs,
        moved / bandwidth,
        issue_time,
        moved,
    )
