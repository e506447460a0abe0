"""The kernels compiled ahead of time for several GPUs, without one, and their machine code checked.

The launches of every operation are recorded over dtypes x memory layouts x sizes and compiled
exactly as Triton's JIT would, in as many processes as there are cores. Cases outside a pairwise
covering subset are marked exhaustive: in the subset each pair of values of two of these properties
occurs for each operation.
"""

from __future__ import annotations

import inspect
import itertools
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this session interprets kernels", allow_module_level=True)

import sass
import triton
import triton.language as tl
from kernel_cases import BALLS, NOISE, OPERATIONS, Case
from triton.backends.compiler import GPUTarget

from drf_fast.kernels.launch import launch, recording

pytestmark = pytest.mark.proofs

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CAPABILITIES = (90, 75, 80, 100)  # sm_90 first: the subset is compiled for it in full
REGISTERS = 65536  # of a multiprocessor, from sm_75 on
SHARED = 48 * 1024  # bytes of a program, on any GPU without opting in to more
# Images with several remainders mod 16, and numbers of classes for all tilings of a row.
IMAGES = ((1, 28, 28), (3, 32, 32), (3, 224, 224), (1, 5, 8), (3, 5, 5), (2, 3, 5))
CLASSES = (10, 16, 100, 1000, 1001, 100_000)


def all_cases(operation: str) -> list[Case]:
    if operation in ("smooth_ce", "consistency_loss", "macer_loss"):
        layouts, sizes = ("contiguous", "unaligned", "sample_major"), [(k,) for k in CLASSES]
    else:
        layouts, sizes = ("contiguous", "unaligned", "channels_last"), list(IMAGES)
    cases = [
        Case(operation, (8, 4, *size), dtype, layout)
        for dtype, layout, size in itertools.product(DTYPES, layouts, sizes)
    ]
    if operation == "adversary_step":
        variants = itertools.product(BALLS, ("image", "batch", "none"), ((0.0, 1.0), None))
        cases = [
            Case(operation, case.shape, case.dtype, case.layout, ball, norm, clamp)
            for case, (ball, norm, clamp) in itertools.product(cases, variants)
        ]
    return cases


def pairs(case: Case) -> set[tuple[object, ...]]:
    values = enumerate((case.dtype, case.layout, case.shape, case.ball, case.grad_norm, case.clamp))
    return set(itertools.combinations(values, 2))


def covering(cases: Iterable[Case]) -> list[Case]:
    """Few of the cases in which each pair of values occurs that occurs in all of them (greedy)."""
    cases = list(cases)
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def matrix() -> Iterator[object]:
    for operation in OPERATIONS:
        cases = all_cases(operation)
        subset = covering(cases)
        for at, case in enumerate(subset):
            yield pytest.param(case, 90, id=f"{case}-sm_90")
            # Each case of the subset is also compiled for one of the other GPUs, in turn.
            capability = CAPABILITIES[1 + at % 3]
            left_out = pytest.mark.exhaustive if at % 6 else ()
            yield pytest.param(case, capability, id=f"{case}-sm_{capability}", marks=left_out)
        for case in cases[:: 23 if operation == "adversary_step" else 1]:
            for capability in CAPABILITIES:
                yield pytest.param(
                    case,
                    capability,
                    id=f"{case}-sm_{capability}-full",
                    marks=pytest.mark.exhaustive,
                )


@triton.jit
def square_roots(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.sqrt_rn(tl.load(x + at)))


@triton.jit
def divisions(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    whole = tl.load(x + at).to(tl.int32).to(tl.float32)  # as in noisy_levels: finite, not subnormal
    tl.store(out + at, tl.div_rn(whole, 255.0))


def fused(binary: sass.Binary) -> int:
    """FFMA instructions, without those with the zero register as a factor, which are moves."""
    return sum(one.name == "FFMA" and one.operands.split(", ")[1] != "RZ" for one in binary.code)


def fused_in(kernel, number: int, capability: int) -> int:
    """FFMA instructions in the code of ``number`` correctly rounded operations of a thread."""
    if number < 1:
        return 0

    def count(of: int) -> int:
        x = torch.empty(32 * of, device="meta")
        with recording() as launches:
            launch(kernel, 1, x, torch.empty_like(x), num_warps=1, BLOCK=32 * of)
        return fused(sass.compiled(launches[0], capability))

    if number == 1:
        return count(1)
    two, four = count(2), count(4)  # from two on they share a copy of the slow path
    return two + (number - 2) * (four - two) // 2


@pytest.fixture(scope="module")
def binaries_of(request: pytest.FixtureRequest) -> Iterator[Callable[[Case, int], Any]]:
    """``sass.of_case``, computed ahead in other processes for all tests that will run."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # xdist runs several processes already
        yield sass.of_case
        return
    chosen = [
        (item.callspec.params["case"], item.callspec.params["capability"])
        for item in request.session.items
        if item.path == request.path and item.originalname == "test_machine_code"
    ]
    # Not forked, which is unsafe in a process with threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(chosen), os.cpu_count() or 1), context) as pool:
        coming = {one: pool.submit(sass.of_case, *one) for one in chosen}
        yield lambda case, capability: coming[case, capability].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case, capability", list(matrix()))
def test_machine_code(case: Case, capability: int, binaries_of):
    for programs, binary in binaries_of(case, capability):
        info = f"{binary.name} {dict(binary.opcodes())}"
        assert binary.stack == 0 and binary.count("(LDL|STL).*") == 0, f"local memory: {info}"
        assert binary.registers * 32 * binary.warps <= REGISTERS, info
        assert binary.shared <= SHARED, info
        # REDUX, a reduction over a warp, is no atomic operation.
        assert binary.count(r"(RED|ATOMS?|ATOMG)(\..*)?") == 0, f"atomics: {info}"
        if case.operation in NOISE:
            check_exactness(binary, capability)
        if (
            vectors(case) and programs > 1
        ):  # a single program is the reduction, of one number per image
            check_vectors(binary, case.dtype, bytes_in=case.operation == "noisy_levels")


def check_exactness(binary: sass.Binary, capability: int) -> None:
    """Only +, -, *, / and sqrt, correctly rounded, none contracted into a fused multiply-add."""
    info = str(dict(binary.opcodes()))
    assert not re.search(r"\bfma\.|\.approx|\.ftz", binary.ptx), "the contract rounds every step"
    assert binary.count(r"MUFU\.(LG2|SIN|COS|EX2|TANH|SQRT).*") == 0, info
    roots = binary.count(r"MUFU\.RSQ") - 1  # one is in the shared slow path of the roots
    # All divisions are noisy_levels' by 255: each has one FFMA that subtracts 255 times its first
    # quotient. Of a division whose result is not stored, the FCHK of its slow path may remain.
    taken_off = (one.operands.split(", ")[2] for one in binary.code if one.name == "FFMA")
    divided = sum(operand == "-255" for operand in taken_off)
    assert (divided > 0) == (binary.count("FCHK.*") > 0), info
    made_of = fused_in(square_roots, roots, capability) + fused_in(divisions, divided, capability)
    assert fused(binary) == made_of, info


def vectors(case: Case) -> bool:
    """Whether rows begin at multiples of 16 bytes and are accessed contiguously."""
    row = math.prod(case.shape[2:])
    in_order = case.layout in ("contiguous", "sample_major") or (
        case.layout == "channels_last" and case.operation == "noisy_repeat_backward"
    )
    return in_order and row * case.dtype.itemsize % 16 == 0 and row >= 512


def check_vectors(binary: sass.Binary, dtype: torch.dtype, bytes_in: bool = False) -> None:
    """The large accesses are of 128 bits; a few others load or store single numbers.

    With ``bytes_in`` a thread reads one byte for each number that it stores, all bytes of a store
    in one load, and loads 64-bit numbers from a table.
    """
    info = f"{binary.name} {dict(binary.opcodes())}"
    # Where half precisions are accessed with float32 of the same tile, 64 bits go with 128.
    beside = dtype.itemsize == 2 and binary.name in ("sum_copies_kernel", "step_in_passes_kernel")
    wide = r"\.(128|64)" if beside else r"\.128"
    assert binary.count(rf"LDG\..*{wide}.*") or bytes_in, info
    assert binary.count(r"STG\..*\.128.*"), info
    assert binary.count("STG.*") - binary.count(rf"STG\..*{wide}.*") <= 2, info
    if bytes_in:
        together = {2: r"\.64", 4: "", 8: r"\.U16"}[dtype.itemsize]
        assert binary.count(rf"LDG\.E{together}(\.CONSTANT|\.SYS)?") >= 4, info  # the four runs
        assert binary.count(r"LDG\..*U8.*") == 0, info
        return
    width = {2: r"\.U16", 4: "", 8: r"\.64"}[dtype.itemsize]
    # Single 64-bit loads include the norms of a batch and the scalar parameters of the step.
    singles = binary.count(rf"LDG\.E{width}(\.CONSTANT|\.SYS)?")
    assert singles <= (24 if dtype.itemsize == 8 else 4), info


# ------------------------------------------------------------------------------ the instrument


class Pointer:
    """A tensor without memory, with the interface that the JIT uses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.address = 512 + tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self.address


@pytest.mark.parametrize("layout", ["contiguous", "unaligned"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_launch_is_specialised_as_the_jit_does(operation, layout):
    jit = pytest.importorskip("triton.runtime.jit")
    backend = triton.compiler.make_backend(GPUTarget("cuda", 90, 32))
    size = (1, 28, 28) if "noisy" in operation or "adversary" in operation else (100,)
    for recorded in Case(operation, (5, 3, *size), layout=layout).launches():
        kernel = recorded.kernel
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        arguments = [Pointer(a) if isinstance(a, torch.Tensor) else a for a in recorded.arguments]
        bound, specialised, options = bind(*arguments, **recorded.constants, debug=False)
        _, types, constants, divisible = kernel._pack_args(
            backend, {"debug": False}, bound, specialised, options
        )
        ours = sass.signature(recorded)
        assert ours[0] == types
        assert {(kernel.arg_names.index(k),): v for k, v in ours[1].items()} == constants
        assert ours[2] == {index: value for index, value in divisible.items() if value}


def test_every_operation_and_argument_is_in_the_matrix():
    assert set(OPERATIONS) >= set(NOISE)
    parameters = inspect.signature(Case).parameters
    assert set(parameters) == {
        *("operation", "shape", "dtype", "layout", "ball", "grad_norm", "clamp", "reduction")
    }


@triton.jit
def contracted(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(out + at, tl.fma(value, value, 1.0))


@triton.jit
def approximate(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.sin(tl.load(x + at)))


def test_a_row_of_a_thousand_classes_belongs_to_one_warp():
    """Split between warps (as once by Triton 3.6), reductions would exchange every value."""
    (_, binary), *_ = sass.of_case(
        Case("smooth_ce", (64, 8, 1000), torch.float32, "contiguous"), 90
    )
    assert binary.count(r"SHFL\..*") < 40 and binary.count(r"LDS(\..*)?") < 40


@pytest.mark.parametrize("kernel", [contracted, approximate], ids=lambda kernel: kernel.__name__)
def test_inexact_code_is_found(kernel):
    x = torch.empty(128, device="meta")
    with recording() as launches:
        launch(kernel, 1, x, torch.empty_like(x), BLOCK=128)
    with pytest.raises(AssertionError):
        check_exactness(sass.compiled(launches[0], 90), 90)


def test_local_memory_and_narrow_accesses_are_found():
    with recording() as launches:
        for offset in (0, 1):
            x = torch.empty(4096 + offset, device="meta")[offset:]
            launch(square_roots, 1, x, torch.empty_like(x), num_warps=4, BLOCK=4096)
    check_vectors(sass.compiled(launches[0], 90), torch.float32)
    with pytest.raises(AssertionError):
        check_vectors(sass.compiled(launches[1], 90), torch.float32)
    # 64 numbers per thread do not fit into 32 registers, and spill.
    with recording() as launches:
        launch(square_roots, 1, x, torch.empty_like(x), num_warps=2, registers=32, BLOCK=4096)
    assert sass.compiled(launches[0], 90).count("(LDL|STL).*") > 0
