"""The kernels' accesses: nothing twice, nothing out of bounds, nothing that another program writes.

Small cases run on real, traced memory, cases of realistic sizes on absent memory (see
tests/instruments/phantom.py).
"""

from __future__ import annotations

import phantom
import pytest
import torch
from kernel_cases import OPERATIONS, Case

from drf_fast.backends.reference import operations as reference

LOSSES = ("smooth_ce", "consistency_loss", "macer_loss")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def small_cases(operation: str) -> list[Case]:
    """Every dtype and layout, sizes that leave masked lanes, one too large for registers."""
    if operation in LOSSES:
        shapes = [(3, 3, 7), (5, 1, 10), (2, 4, 1000)]
        return [
            *(Case(operation, shape, dtype) for shape in shapes for dtype in DTYPES),
            *(
                Case(operation, (3, 2, 33), layout=layout)
                for layout in ("unaligned", "sample_major")
            ),
            *(Case(operation, (3, 2, 16), reduction=name) for name in ("none", "sum")),
            Case(operation, (1, 2, 40_000)),
        ]
    shapes = [(2, 3, 3, 5, 5), (3, 1, 1, 28, 28), (1, 4, 3, 33, 31)]
    cases = [
        *(Case(operation, shape, dtype) for shape in shapes for dtype in DTYPES),
        *(Case(operation, shapes[0], layout=layout) for layout in ("unaligned", "channels_last")),
    ]
    if operation == "adversary_step":
        cases += [
            *(
                Case(operation, shapes[0], ball=ball)
                for ball in ("none", "excess", "prox", "shrink", "udr")
            ),
            *(Case(operation, shapes[1], grad_norm=norm) for norm in ("batch", "none")),
            Case(operation, shapes[0], clamp=None),
            Case(operation, (2, 2, 3, 64, 64)),  # more than fits into the registers of a program
        ]
    return cases


def large_cases(operation: str) -> list[Case]:
    """Tensors of more than 2^31 elements, by each of their dimensions, and of more than 2^32."""
    if operation in LOSSES:
        return [
            Case(operation, (2**28, 1, 10)),
            Case(operation, (2**20, 3, 1000), torch.bfloat16),
            Case(operation, (450_000, 2, 12_000), torch.bfloat16, "sample_major"),
            Case(operation, (100_000, 4, 12_000), torch.float16),
        ]
    return [
        Case(operation, (2**13, 4, 3, 224, 224), torch.bfloat16),
        Case(operation, (2**20, 3, 1, 28, 28)),
        Case(operation, (2**13, 4, 3, 224, 224), torch.bfloat16, "channels_last"),
        Case(operation, (3, 2, 3, 2**14, 2**14), torch.float16),
    ]


def exact(case: Case) -> object:
    """The reference's result for the same arguments, its arithmetic in float64."""
    arguments = case.arguments("cpu")
    wide = [
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in arguments
    ]
    return getattr(reference, case.operation)(*wide)


@pytest.mark.parametrize(
    "case", [case for operation in OPERATIONS for case in small_cases(operation)], ids=str
)
def test_programs_run_in_any_order_and_write_all_of_their_outputs_and_no_more(every_order, case):
    with phantom.watch() as traces:
        results = every_order(case.run)
    assert traces
    for trace in traces:
        assert not trace.races()
        assert not trace.outside()
        assert trace.bytes("atomic") == 0
        assert trace.bytes("store") == trace.distinct_bytes("store"), "stored twice"
    tensors = (results,) if isinstance(results, torch.Tensor) else results
    assert all(bool(tensor.isfinite().all()) for tensor in tensors), "left what torch.empty gave"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_byte_is_moved_once(operation):
    """1.00 times the minimum, except for numbers of which there is one per image."""
    shape = (4, 8, 1000) if operation in LOSSES else (4, 4, 3, 32, 32)
    for dtype in DTYPES:
        case = Case(operation, shape, dtype)
        moved = 0
        for recorded in case.launches():
            trace = phantom.run(recorded, range(recorded.programs))
            moved += trace.moved_bytes()
        assert moved <= 1.005 * case.minimum_bytes + 64 * shape[0], moved / case.minimum_bytes


@pytest.mark.parametrize(
    "case", [case for operation in OPERATIONS for case in large_cases(operation)], ids=str
)
def test_offsets_beyond_2_to_the_31(case):
    """The first, the last and the programs around 2^31 and 2^32 elements stay in bounds."""
    launches = case.launches()
    assert launches[0].programs > 1
    for recorded in launches:
        if recorded.programs == 1:  # the reduction, over one number per image
            continue
        tensors = [value for value in recorded.arguments if isinstance(value, torch.Tensor)]
        largest = max(tensors, key=lambda tensor: tensor.numel())
        each = max(1, largest.numel() // recorded.programs)
        if each > 2**28:  # too slow in the interpreter: one program processes a whole image
            assert recorded.kernel.fn.__name__ == "step_in_passes_kernel"
            continue
        near = [0, 2**31 // each, 2**32 // each, recorded.programs - 1]
        chosen = {place + step for place in near for step in (-1, 0, 1)}
        programs = sorted(chosen & set(range(recorded.programs)))
        trace = phantom.run(recorded, programs)
        assert not trace.outside()
        assert not trace.races()
        check_ends(trace, largest.element_size())


def check_ends(trace: phantom.Trace, width: int) -> None:
    """Each output is written from its first to its last byte."""
    for span in trace.spans:
        stored = [
            access
            for access in trace.accesses
            if access.kind == "store" and access.addresses.size
            if span.start <= access.addresses[0] < span.stop
        ]
        if stored:
            assert min(access.addresses.min() for access in stored) == span.start
            assert max(access.addresses.max() + access.width for access in stored) == span.stop
