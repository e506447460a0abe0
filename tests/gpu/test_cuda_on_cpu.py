"""The source of the CUDA kernels, run on the CPU with a std::thread for each CUDA thread.

``cuda_on_cpu/cuda_on_cpu.h`` defines threadIdx, __shared__, shuffles and atomics. The same programs
run under sanitizers, which must report nothing, except for planted faults.
"""

from __future__ import annotations

import csv
import math
import os
import platform
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from drf_fast.backends.native import counting, library

pytestmark = pytest.mark.proofs

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "clopper_pearson.csv"
COMPILERS = ("g++", "c++", "clang++")
PROBE = "#include <barrier>\n#include <thread>\nint main() { std::barrier<> b(1); }\n"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PLAIN = ("-O2",)
THREADS = ("-O1", "-g", "-fsanitize=thread")
MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

needs_native = pytest.mark.skipif(
    not library.available(), reason=f"needs the C++ core: {library.why_not()}"
)

Build = Callable[[str, Sequence[str]], Path]


class Ran(NamedTuple):
    status: int
    output: bytes
    messages: str


def run(program: Path, data: bytes, **environment: str) -> Ran:
    """Run a program without address space randomisation, which old sanitizers cannot handle."""
    fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    done = subprocess.run(
        [*fixed, str(program)],
        input=data,
        capture_output=True,
        timeout=200,
        env={**os.environ, "TSAN_OPTIONS": "", "ASAN_OPTIONS": "", **environment},
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def compile_(compiler: str, source: Path, flags: Sequence[str], output: Path) -> str | None:
    """Compile a program; the compiler's output if it failed."""
    folders = [f"-I{TESTS / 'cuda_on_cpu'}", f"-I{TESTS.parent / 'csrc'}"]
    words = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    done = subprocess.run(
        [compiler, *words, *flags, *folders, str(source), "-o", str(output)],
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else None


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal program with the requirements of ``cuda_on_cpu.h``."""
    source = tmp_path_factory.mktemp("probe") / "probe.cpp"
    source.write_text(PROBE)
    return source


@pytest.fixture(scope="module")
def compiler(probe: Path) -> str:
    for name in filter(shutil.which, COMPILERS):
        if compile_(name, probe, [], probe.with_suffix("")) is None:
            return name
    pytest.skip(f"needs a C++20 compiler with std::barrier, none of {', '.join(COMPILERS)} is one")


@pytest.fixture(scope="module")
def build(compiler: str, probe: Path) -> Build:
    """Compile a program of ``cuda_on_cpu``, once for each set of flags."""
    made: dict[tuple[str, ...], Path] = {}

    def build_once(name: str, flags: Sequence[str]) -> Path:
        key = (name, *flags)
        if key not in made:
            program = probe.with_name(f"{name}_{len(made)}")
            problem = compile_(compiler, TESTS / "cuda_on_cpu" / f"{name}.cpp", flags, program)
            assert problem is None, problem
            made[key] = program
        return made[key]

    return build_once


@pytest.fixture(scope="module", params=[THREADS, MEMORY], ids=["threads", "memory"])
def sanitizer(request: pytest.FixtureRequest, compiler: str, probe: Path) -> Sequence[str]:
    """The flags of a sanitizer."""
    if compile_(compiler, probe, request.param, probe.with_suffix("")) is not None:
        pytest.skip(f"needs the libraries of {request.param[2]}, which {compiler} does not find")
    return request.param


# -------------------------------------------------------------------------------------------- vote


class Vote(NamedTuple):
    logits: torch.Tensor
    counts: torch.Tensor  # before
    lanes: int
    blocks: int
    threads: int

    def packed(self) -> bytes:
        rows, classes = self.logits.shape
        kind = DTYPES.index(self.logits.dtype)
        sizes = (kind, self.lanes, self.blocks, self.threads, rows, classes, len(self.counts))
        raw = self.logits.contiguous().view(torch.uint8)
        return struct.pack("7q", *sizes) + self.counts.numpy().tobytes() + raw.numpy().tobytes()

    def expected(self) -> torch.Tensor:
        """The definition, in float64 and plain Python."""
        counts = self.counts.tolist()
        rows = self.logits.to(torch.float64).tolist()
        for index, row in enumerate(rows):
            if not any(math.isnan(value) for value in row):
                counts[index * len(counts) // len(rows)][row.index(max(row))] += 1
        return torch.tensor(counts)


def a_vote(
    dtype: torch.dtype, images: int, per_image: int, classes: int, grid: tuple[int, int, int]
) -> Vote:
    """Few distinct values, for many ties; infinities of both signs, NaN, a row of -inf."""
    generator = torch.Generator().manual_seed(1000 * images + 10 * per_image + classes)
    rows = images * per_image
    logits = torch.randint(-3, 4, (rows, classes), generator=generator).to(torch.float64) / 4
    kind = torch.randint(0, 40, (rows, classes), generator=generator)
    for code, value in enumerate((-math.inf, math.inf, 6e4, -6e4, 3e-6)):
        logits[kind == code] = value
    logits[torch.rand(rows, generator=generator) < 0.1, classes - 1] = math.nan
    logits[rows // 2] = -math.inf
    counts = torch.randint(0, 9, (images, classes), generator=generator)
    return Vote(logits.to(dtype), counts, *grid)


def votes(program: Path, cases: Sequence[Vote]) -> list[torch.Tensor]:
    done = run(program, packed(cases))
    assert done.status == 0, done.messages
    sizes = [case.counts.numel() for case in cases]
    results = torch.frombuffer(bytearray(done.output), dtype=torch.int64).split(sizes)
    return [out.reshape(case.counts.shape) for out, case in zip(results, cases, strict=True)]


def packed(cases: Sequence[Vote] | Sequence[Bounds]) -> bytes:
    """The standard input of a program."""
    return struct.pack("q", len(cases)) + b"".join(case.packed() for case in cases)


# Lanes of a row, blocks, threads: one group and many, one block and several.
FEW = [(4, 1, 32), (4, 3, 64)]
MANY = [(32, 1, 32), (32, 2, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_votes_equal_plain_counting(build: Build, dtype: torch.dtype) -> None:
    cases = [
        a_vote(dtype, images, per_image, classes, grid)
        for images, per_image in ((1, 1), (1, 37), (3, 5), (7, 3), (2, 150))
        for grids, widths in ((FEW, (1, 2, 3, 4, 5, 10, 32)), (MANY, (1, 31, 32, 33, 100)))
        for grid in grids
        for classes in widths
        if images * per_image <= 40 or classes in (10, 33)
    ]
    for case, counts in zip(cases, votes(build("vote", PLAIN), cases), strict=True):
        assert torch.equal(counts, case.expected()), case


def test_ties_go_to_the_lowest_class_and_infinite_rows_vote(build: Build) -> None:
    rows = [[0.0, 2, 2], [-math.inf] * 3, [math.inf] * 3, [-0.0, 0, -1], [0, 0, math.nan]]
    nothing = torch.zeros(1, 3, dtype=torch.int64)
    cases = [Vote(torch.tensor(rows), nothing, *grid) for grid in (FEW[0], MANY[0])]
    assert [out.tolist() for out in votes(build("vote", PLAIN), cases)] == [[[3, 1, 0]]] * 2


def test_counts_above_2_to_the_53_stay_exact(build: Build) -> None:
    before = torch.tensor([[2**53, 2**62]])
    case = Vote(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), before, *FEW[0])
    assert votes(build("vote", PLAIN), [case])[0].tolist() == [[2**53 + 1, 2**62 + 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_compared_as_its_value(build: Build, dtype: torch.dtype) -> None:
    """Each bit pattern against its neighbour, in a row of two."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    logits = torch.stack([values, values.roll(1)], dim=1)
    case = Vote(logits, torch.zeros(1024, 2, dtype=torch.int64), 4, 2, 64)
    assert torch.equal(votes(build("vote", PLAIN), [case])[0], case.expected())


# ------------------------------------------------------------------------------------------ bounds


class Bounds(NamedTuple):
    successes: list[int]
    trials: list[int]
    alpha: float
    sigma: float
    blocks: int = 2
    threads: int = 32

    def packed(self) -> bytes:
        size = len(self.successes)
        numbers = (self.blocks, self.threads, size, self.alpha, self.sigma)
        return struct.pack(f"3q2d{2 * size}q", *numbers, *self.successes, *self.trials)

    def expected(self) -> tuple[list[float], list[float]]:
        """Results of the C++ core: the same header, compiled for the host's instruction sets."""
        counts = torch.tensor(self.successes), torch.tensor(self.trials)
        alpha, sigma = (
            torch.tensor(value, dtype=torch.float64) for value in (self.alpha, self.sigma)
        )
        return (
            counting.clopper_pearson_lower(*counts, alpha).tolist(),
            counting.certified_radius(*counts, sigma, alpha).tolist(),
        )


def bounds(program: Path, cases: Sequence[Bounds]) -> list[tuple[list[float], list[float]]]:
    """The lower bounds and the radii of each case."""
    done = run(program, packed(cases))
    assert done.status == 0, done.messages
    numbers = list(struct.unpack(f"{len(done.output) // 8}d", done.output))
    results, start = [], 0
    for size in (len(case.successes) for case in cases):
        results.append((numbers[start : start + size], numbers[start + size : start + 2 * size]))
        start += 2 * size
    return results


def golden() -> list[Bounds]:
    with GOLDEN.open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = sorted({row["alpha"] for row in rows})
    groups = {alpha: [row for row in rows if row["alpha"] == alpha] for alpha in levels}
    return [
        Bounds([int(r["k"]) for r in group], [int(r["n"]) for r in group], float(alpha), 0.25)
        for alpha, group in groups.items()
    ]


def random_counts(alpha: float, size: int) -> Bounds:
    draw = random.Random(f"{alpha}")
    trials = [round(10 ** draw.uniform(0, 15.9)) for _ in range(size)]
    successes = [
        draw.choice([draw.randint(0, n), n, n - min(n, draw.randint(0, 40)), n // 2 + n // 9])
        for n in trials
    ]
    return Bounds(successes, trials, alpha, draw.uniform(0.01, 4), blocks=3, threads=64)


@needs_native
def test_bounds_have_the_bits_of_the_cpu(build: Build) -> None:
    levels = (0.5, 0.3, 0.05, 0.001, 1e-6, 1e-12, 1e-300, 0.5000000001, 0.9, 1 - 1e-6)
    cases = [*golden(), *(random_counts(alpha, 700) for alpha in levels)]
    for case, found in zip(cases, bounds(build("bounds", PLAIN), cases), strict=True):
        for result, truth in zip(found, case.expected(), strict=True):
            assert result == truth, (case.alpha, case.sigma)


def test_what_the_cpu_refuses_gives_0(build: Build) -> None:
    pairs = [(7, 5), (-1, 5), (0, 0), (3, -4), (2**53 + 1,) * 2, (-(2**63), 2**63 - 1), (9, 9)]
    successes, trials = (list(column) for column in zip(*pairs, strict=True))
    nothing = [0.0] * len(pairs)
    ((lower, radius),) = bounds(build("bounds", PLAIN), [Bounds(successes, trials, 0.1, 0.5)])
    assert lower[:-1] == radius[:-1] == nothing[:-1] and lower[-1] > 0.7 and radius[-1] > 0.1
    for alpha in (0.0, 1.0, -0.5, 2.0, math.nan, math.inf, -math.inf):
        case = Bounds(successes, trials, alpha, 0.5)
        assert bounds(build("bounds", PLAIN), [case]) == [(nothing, nothing)]
    for sigma in (0.0, -1.0, math.nan, math.inf, -math.inf):
        case = Bounds(successes, trials, 0.1, sigma)
        assert bounds(build("bounds", PLAIN), [case]) == [(lower, nothing)]


# -------------------------------------------------------------------------------------- sanitizers

SHORT_VOTES = [
    a_vote(dtype, 2, 13, classes, grid)
    for dtype in DTYPES
    for classes, grid in ((3, (4, 2, 64)), (10, (4, 1, 32)), (33, (32, 2, 64)))
]
SHORT_BOUNDS = [random_counts(alpha, 150) for alpha in (0.001, 0.9)]


def test_the_sanitizers_find_nothing(build: Build, sanitizer: Sequence[str]) -> None:
    for case, counts in zip(SHORT_VOTES, votes(build("vote", sanitizer), SHORT_VOTES), strict=True):
        assert torch.equal(counts, case.expected())
    plain = bounds(build("bounds", PLAIN), SHORT_BOUNDS)
    assert bounds(build("bounds", sanitizer), SHORT_BOUNDS) == plain


@pytest.mark.parametrize(
    "sanitizer, name, planted, cases, report",
    [
        # an atomicAdd that is a plain addition
        (THREADS, "vote", "race", SHORT_VOTES[:1], "data race"),
        # no __syncthreads after the write to shared memory
        (THREADS, "bounds", "no_barrier", SHORT_BOUNDS[:1], "data race"),
        # one row more than there are
        (MEMORY, "vote", "overrun", SHORT_VOTES[:1], "heap-buffer-overflow"),
    ],
    ids=["race", "no barrier", "overrun"],
    indirect=["sanitizer"],
)
def test_the_sanitizers_find_what_is_planted(
    build: Build,
    sanitizer: Sequence[str],
    name: str,
    planted: str,
    cases: Sequence[Vote] | Sequence[Bounds],
    report: str,
) -> None:
    done = run(build(name, sanitizer), packed(cases), PLANT=planted)
    assert done.status != 0 and report in done.messages, done
