"""Executed PTX: the instrument detects faults, and a subset of the kernel tests passes.

To run all kernel tests, with the installed Triton, or with several versions, each downloaded:

    DRF_FAST_TEST_KERNELS=ptx pytest -n 2 tests/kernels
    python tests/instruments/ptx_versions.py FOLDER 3.2.0 3.6.0 3.9.0 -- -n 2
"""

from __future__ import annotations

import importlib.util
import math
import struct

import kernel_sessions
import numpy as np
import pytest
from fused import fma
from ptx import Counts, FaultError, Memory, Program, execute

ALL = "tests/kernels/"
# Each kernel, with and without a loop over blocks; layouts with and without vectors; exchanges
# within warps and through shared memory; noise, bit by bit.
SUBSET = [
    f"{ALL}test_smooth_ce.py",
    f"{ALL}test_losses.py::test_images_that_share_a_program_are_as_single_ones",
    *(
        f"{ALL}{name}-{loss}]"
        for loss in ("smooth_ce", "consistency_loss", "macer_loss")
        for name in (
            "test_losses_memory.py::"
            "test_no_layout_changes_the_numbers_or_touches_its_neighbours[torch.float32",
            "test_losses.py::test_blocks_that_pass_by_give_what_registers_give[7",
        )
    ),
    f"{ALL}test_noisy_repeat.py::test_sizes_beside_the_blocks",
    f"{ALL}test_noisy_repeat.py::test_copies_are_added_in_order",
    f"{ALL}test_adversary_step.py::test_an_image_that_no_program_holds",
    f"{ALL}test_adversary_step.py::test_zero_gradients_move_nothing",
]


@pytest.mark.proofs
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_a_subset_of_the_kernel_tests_passes_on_executed_ptx():
    kernel_sessions.passes(SUBSET, 2, DRF_FAST_TEST_KERNELS="ptx")


# ----------------------------------------------------------------------------------- the instrument

HEAD = """
.visible .entry snippet(
	.param .u64 .ptr .global .align 1 snippet_param_0,
	.param .u32 snippet_param_1
)
.reqntid 32
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [snippet_param_0];
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	shl.b32 	%r3, %r1, 2;
	mad.wide.u32 	%rd2, %r1, 4, %rd1;  // where the thread stores its number
"""


def run(
    body: str, warps: int = 1, programs: int = 1, shared: int = 4096, words: int | None = None
) -> tuple[np.ndarray, Counts]:
    """The numbers (uint32), one per thread, that the snippet stores, and its counts."""
    out = np.zeros(32 * warps if words is None else words, np.uint32)
    memory = Memory()
    values = {"snippet_param_0": memory.add(out.view(np.uint8), "out"), "snippet_param_1": 7}
    program = Program(HEAD + body + "\n}\n")
    return out, execute(program, programs, warps, values, memory, shared)


def stored(body: str, warps: int = 1) -> np.ndarray:
    return run(body + "\n\tst.global.b32 [%rd2], %r9;\n\tret;", warps)[0]


LANE = np.arange(32, dtype=np.uint32)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("add.s32 %r9, %r1, -3;", LANE - np.uint32(3)),
        ("mul.hi.u32 %r9, %r1, -1;", np.maximum(LANE, 1) - 1),
        ("shl.b32 %r9, %r1, %r3;", [int(i) << 4 * int(i) & 0xFFFFFFFF for i in LANE]),
        ("sub.s32 %r9, %r1, 16; shr.s32 %r9, %r9, 40;", np.where(LANE < 16, 2**32 - 1, 0)),
        ("popc.b32 %r9, %r1;", [int(i).bit_count() for i in LANE]),
        ("clz.b32 %r9, %r1;", [32 - int(i).bit_length() for i in LANE]),
        ("brev.b32 %r9, %r1;", [int(f"{int(i):032b}"[::-1], 2) for i in LANE]),
        ("bfe.u32 %r9, %r1, 1, 3;", LANE >> 1 & 7),
        ("bfe.s32 %r9, %r1, 1, 2;", [(int(i) >> 1 & 3 ^ 2) - 2 & 0xFFFFFFFF for i in LANE]),
        ("bfi.b32 %r9, %r1, 255, 2, 3;", 255 & ~28 | (LANE & 7) << 2),
        # Byte 0 of the lane; byte 0 and 1, then 3 of 0x11223344 (numbers 4 and 5, 7).
        ("prmt.b32 %r9, %r1, 0x11223344, 0x7540U;", 0x11334400 | LANE),
        ("prmt.b32 %r9, %r1, %r19, 0x3210U;", LANE),  # undefined, but no byte of it is selected
        ("mov.u32 %r9, %r19;", np.full(32, 0xABABABAB)),
        ("lop3.b32 %r9, %r1, 12, 10, 0xE8;", LANE & 12 | LANE & 10 | 12 & 10),
        ("mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r9, {%rs2, %rs1};", LANE << 16),
        ("add.s16x2 %r9, %r1, 0xFFFFFFFF;", (LANE - 1 & 0xFFFF) | 0xFFFF0000),
        ("div.s32 %r9, -7, 2;", np.full(32, 2**32 - 3)),
        ("rem.s32 %r9, -7, 2;", np.full(32, 2**32 - 1)),
        ("setp.lt.u32 %p1, %r1, 3; selp.b32 %r9, 5, 6, %p1;", np.where(LANE < 3, 5, 6)),
        (
            "mov.u32 %r9, 1; setp.lt.u32 %p1, %r1, 3; @!%p1 mov.u32 %r9, 2;",
            np.where(LANE < 3, 1, 2),
        ),
        ("shfl.sync.bfly.b32 %r9, %r1, 5, 31, -1;", LANE ^ 5),
        ("shfl.sync.idx.b32 %r9, %r1, 3, 31, -1;", np.full(32, 3)),
        ("shfl.sync.up.b32 %r9, %r1, 2, 0, -1;", np.where(LANE < 2, LANE, LANE - 2)),
        ("redux.sync.add.s32 %r9, %r1, -1;", np.full(32, 496)),
        ("redux.sync.max.u32 %r9, %r1, -1;", np.full(32, 31)),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.ballot.b32 %r9, %p1, -1;", np.full(32, 7)),
        ("cvt.rzi.s32.f32 %r9, 0fFFC00000;", np.zeros(32)),
        ("cvt.rzi.u32.f32 %r9, 0f5F000000;", np.full(32, 2**32 - 1)),
        ("max.f32 %r9, 0f7FC00000, 0f40000000;", np.full(32, 0x40000000)),
        ("add.ftz.f32 %r9, 0f00000001, 0f80000000;", np.zeros(32)),
        ("setp.geu.f32 %p1, 0f7FC00000, 0f00000000; selp.b32 %r9, 1, 0, %p1;", np.ones(32)),
        ("cvt.rn.bf16x2.f32 %r9, 0f3F808000, 0f3F818000;", np.full(32, 0x3F803F82)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_instruction_computes_what_the_manual_says(body, expected):
    assert stored(body.replace("; ", ";\n\t")).tolist() == np.asarray(expected).tolist()


def test_matrices_in_shared_memory_go_to_the_threads_that_the_manual_names():
    body = """
	mov.b32 %r4, global_smem;
	mad.lo.s32 %r5, %r1, 16, %r4;   // row of 8 numbers: 4 words of the thread's own
	mul.lo.s32 %r6, %r1, 65536;
	or.b32 %r6, %r6, %r1;
	st.shared.v4.b32 [%r5], {%r6, %r6, %r6, %r6};
	bar.sync 0;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r9, %r10, %r11, %r12}, [%r5];
	add.s32 %r9, %r9, %r12;"""
    row = LANE // 4  # of the first matrix, and 24 more of the last one
    assert stored(body).tolist() == (row * 65537 + (row + 24) * 65537).tolist()
    transposed = body.replace("m8n8.x4.shared", "m8n8.x4.trans.shared")
    low = 2 * (LANE % 4)
    expected = low + (low + 1) * 65536 + low + 24 + (low + 25) * 65536
    assert stored(transposed).tolist() == expected.tolist()


def test_matrices_are_stored_where_they_are_loaded_from():
    body = """
	mov.b32 %r4, global_smem;
	mad.lo.s32 %r5, %r1, 16, %r4;
	add.s32 %r10, %r1, 100;
	stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%r5], {%r1, %r10};
	bar.sync 0;
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r9, %r11}, [%r5];
	sub.s32 %r9, %r11, %r9;"""
    assert stored(body).tolist() == [100] * 32


SHARED = """
	mov.b32 %r4, global_smem;
	add.s32 %r5, %r4, %r3;
	xor.b32 %r6, %r3, 128;    // the same lane of the other warp
	add.s32 %r6, %r4, %r6;
	st.shared.b32 [%r5], %r1;
	{barrier}
	ld.shared.b32 %r9, [%r6];"""


def test_a_barrier_that_is_missing_is_found():
    there = stored(SHARED.replace("{barrier}", "bar.sync 0;"), warps=2)
    assert there.tolist() == [*range(32, 64), *range(32)]
    with pytest.raises(FaultError, match="read after another warp's store, without a barrier"):
        stored(SHARED.replace("{barrier}", ""), warps=2)
    again = SHARED.replace("{barrier}", "bar.sync 0;") + "\n\tst.shared.b32 [%r5], %r9;"
    with pytest.raises(FaultError, match="overwritten after another warp's load"):
        stored(again, warps=2)


@pytest.mark.parametrize("at", ["cold", "warm"])
def test_threads_meet_again_wherever_the_compiler_put_the_other_way(at):
    """A block placed before or after its successors is not divergence."""
    cold = "$L_cold:\n\tmov.u32 %r9, 8;\n\tbra.uni $L_join;"
    body = f"""
	mov.u32 %r9, 3;
	setp.lt.u32 %p1, %r1, 5;
	@%p1 bra $L_cold;
	{"bra.uni $L_join;" if at == "warm" else ""}
	{cold if at == "warm" else ""}
$L_join:
	bar.sync 0;
	shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
	st.global.b32 [%rd2], %r9;
	ret;
	{cold if at == "cold" else ""}"""
    out, counts = run(body, warps=2)
    expected = np.where(np.arange(64) < 5, 8, 3)
    assert out.tolist() == expected[np.arange(64) ^ 1].tolist()
    assert counts.exchanges == 4  # a barrier and an exchange of two warps


@pytest.mark.parametrize("together", ["bar.sync 0;", "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;"])
def test_what_not_all_threads_reach_is_a_fault(together):
    body = f"""
	setp.lt.u32 %p1, %r1, 5;
	@%p1 bra $L_past;
	{together}
$L_past:
	ret;"""
    with pytest.raises(FaultError, match="divergent code"):
        run(body)


@pytest.mark.parametrize(
    "body, message",
    [
        ("st.global.b32 [%rd2+128], %r1;", "outside"),
        ("st.global.b32 [%rd1+2], %r1;", "no multiples of 4"),
        ("ld.global.v2.b32 {%r4, %r5}, [%rd2];", "no multiples of 8"),
        ("st.shared.b32 [%r3+8192], %r1;", "bytes"),
        ("st.global.b32 [%rd2], %r1; ld.global.b32 %r4, [%rd1];", "another thread has stored"),
        ("st.global.b32 [%rd2], %r2;", "another program has stored"),
        ("mov.u32 %r9, %r8; mov.u32 %r8, 1;", "before it is written"),
    ],
)
def test_what_no_gpu_forgives_is_a_fault(body, message):
    with pytest.raises(FaultError, match=message):
        run(body.replace("; ", ";\n\t") + "\n\tret;", programs=2 if "program" in message else 1)


def test_an_instruction_without_a_meaning_is_no_guess():
    with pytest.raises(NotImplementedError, match=r"tanh\.approx"):
        run("tanh.approx.f32 %r9, %r1;\n\tret;")


def test_loops_end_at_their_own_time_and_instructions_are_counted():
    body = """
	mov.u32 %r9, 0;
$L_again:
	add.s32 %r9, %r9, 1;
	setp.le.u32 %p1, %r9, %r1;
	@%p1 bra $L_again;
	st.global.b32 [%rd2], %r9;
	ret;"""
    out, counts = run(body)
    assert out.tolist() == list(range(1, 33))
    # The loop once per iteration of the last thread, the end once for each thread that leaves.
    assert counts.instructions >= 5 + 1 + 3 * 32 + 2
    assert counts.global_bytes == 128 and counts.shared_bytes == 0


def exact_fma(a: float, b: float, c: float, dtype: type) -> float:
    from fractions import Fraction

    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if dtype is np.float64:
        return exact.numerator / exact.denominator  # rounded once
    near = np.float32(exact.numerator / exact.denominator)
    others = [np.nextafter(near, np.float32(to)) for to in (-math.inf, math.inf)]
    errors = [abs(Fraction(float(x)) - exact) for x in (near, *others)]
    least = [x for x, e in zip((near, *others), errors, strict=True) if e == min(errors)]
    even = [x for x in least if struct.unpack("I", struct.pack("f", x))[0] % 2 == 0]
    return float(least[0] if len(least) == 1 else even[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_multiply_add_rounds_once(dtype):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(3000).astype(dtype) for _ in range(2))
    c = (-a.astype(np.float64) * b * (1 + random.standard_normal(3000) * 1e-7)).astype(dtype)
    c[::3] = random.standard_normal(1000).astype(dtype) * dtype(2.0) ** random.integers(
        -40, 40, 1000
    )
    # Next to a tie between two numbers, where double rounding goes the wrong way.
    a[:2], b[:2] = dtype(1 + 2 ** (-12 if dtype is np.float32 else -27)), dtype(1)
    got = fma(a, b, c)
    expected = [
        exact_fma(float(x), float(y), float(z), dtype) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert got.dtype == dtype and got.tolist() == expected
