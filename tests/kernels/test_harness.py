"""The instruments detect planted faults of kernels."""

from __future__ import annotations

import phantom
import pytest
import torch
import triton
import triton.language as tl

from drf_fast.kernels.launch import launch, recording


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(out + offsets, 2.0 * tl.load(x + offsets, mask=inside), mask=inside)


@triton.jit
def overlapping(x, out, n, BLOCK: tl.constexpr):
    """Each program also stores another value to the first element of the next one's block."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, 2 * BLOCK)
    inside = (offsets < n) & (offsets <= tl.program_id(0) * BLOCK + BLOCK)
    tl.store(out + offsets, tl.program_id(0) + 1.0, mask=inside)


@triton.jit
def running_sum(x, out, n, BLOCK: tl.constexpr):
    """Sums across programs through memory, without synchronisation."""
    tl.store(out, tl.load(out) * 2.0 + tl.load(x + tl.program_id(0) * BLOCK))


@triton.jit
def forgetful(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, 1.0, mask=offsets < n - 1)


@triton.jit
def unmasked(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets))


@triton.jit
def narrow(x, out, n, BLOCK: tl.constexpr):
    """Offsets in 32 bits, which overflow."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets, mask=offsets < n), mask=offsets < n)


BLOCK = 16


def call(kernel, n: int = 40, device: str = "cpu") -> torch.Tensor:
    x = torch.arange(n, dtype=torch.float32, device=device)
    out = (torch.zeros if kernel is running_sum else torch.empty)(n, device=device)
    launch(kernel, triton.cdiv(n, BLOCK), x, out, n, BLOCK=BLOCK)
    return out


def test_a_correct_kernel_passes(every_order):
    assert torch.equal(every_order(lambda: call(double)), 2.0 * torch.arange(40.0))


@pytest.mark.parametrize("kernel", [overlapping, running_sum], ids=lambda kernel: kernel.__name__)
def test_a_dependence_on_the_order_of_programs_is_found(every_order, kernel):
    with pytest.raises(AssertionError, match="depends on the order"):
        every_order(lambda: call(kernel).nan_to_num())


def test_an_element_that_no_program_writes_is_nan():
    assert call(forgetful)[-1].isnan() and call(forgetful)[:-1].isfinite().all()


@pytest.mark.parametrize("kernel", [overlapping, running_sum], ids=lambda kernel: kernel.__name__)
def test_a_race_is_found_in_the_addresses_alone(kernel):
    with phantom.watch() as traces:
        call(kernel)
    assert traces[0].races()
    with phantom.watch() as traces:
        call(double)
    assert not traces[0].races() and not traces[0].outside()


def recorded(kernel, n: int):
    with recording() as launches:
        call(kernel, n, device="meta")
    return launches[0]


def test_an_access_outside_the_tensors_is_found():
    assert not phantom.run(recorded(double, 40), (0, 1, 2)).outside()
    found = phantom.run(recorded(unmasked, 40), (0, 1, 2)).outside()
    assert {access.kind for access in found} == {"load", "store"}
    assert {access.program for access in found} == {2}


def test_offsets_in_32_bits_are_found_on_absent_memory():
    """Past 2^31 they are negative; past 2^32 they fall on the elements of other programs."""
    for n, fault in ((2**31 + 2, phantom.Trace.outside), (2**32 + 2, phantom.Trace.races)):
        chosen = (0, triton.cdiv(n, BLOCK) - 1)
        correct = phantom.run(recorded(double, n), chosen)
        assert not correct.outside() and not correct.races()
        assert correct.bytes("store") == (BLOCK + 2) * 4
        assert fault(phantom.run(recorded(narrow, n), chosen))


def test_bytes_are_counted():
    trace = phantom.run(recorded(double, 40), (0, 1, 2))
    assert trace.bytes("load") == trace.bytes("store") == trace.distinct_bytes("load") == 160


def test_a_sample_of_programs_is_spread_from_the_first_to_the_last():
    assert phantom.sample(5, 7) == (0, 1, 2, 3, 4)
    chosen = phantom.sample(10**9, 251)
    assert len(set(chosen)) == 251 and chosen[0] == 0 and chosen[-1] == 10**9 - 1
