"""noisy_levels' kernel: every bit is the reference's, in any dtype, layout, size and order.

tests/operations, which runs on this backend too, tests what the operation computes.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import values

from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import noisy_levels as kernels
from drf_fast.kernels.launch import recording
from drf_fast.runtime.level_table import level_table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
same_bits = functools.partial(values.same_bits, strides=True)
IDS = torch.tensor([0, 2**32 - 1, 77])


def arguments(m: int, offset: int = 0, sigma: float = 0.5, dtype: Any = DTYPES[0]) -> list[Any]:
    table = level_table(sigma)
    names = [torch.tensor(-5), IDS, torch.tensor(offset), m, "estimation", dtype]
    return [table.thresholds, table.guide, *names]


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_is_the_references(dtype, layout):
    shapes = ((1, 1, 1), (3, 5, 7), (1, 31, 33), (3, 16, 24))
    for shape, m, offset in zip(shapes, (1, 3, 5, 4), (0, 2**32 - 3, 9, 2**31), strict=True):
        u = images(*shape).contiguous(memory_format=layout)
        rest = arguments(m, offset, dtype=dtype)
        assert same_bits(kernels.noisy_levels(u, *rest), reference.noisy_levels(u, *rest)), shape


@pytest.mark.parametrize("sigma", [1e-4, 0.12, 2.0, 16.0])
def test_tables_of_any_size(sigma):
    u, rest = images(1025), arguments(3, sigma=sigma)
    assert same_bits(kernels.noisy_levels(u, *rest), reference.noisy_levels(u, *rest))


@pytest.mark.parametrize("pixels", [31, 32, 33, 255, 1024])
def test_the_result_does_not_depend_on_the_order_of_programs(pixels, every_order):
    u, rest = images(pixels), arguments(2)
    got = every_order(lambda: kernels.noisy_levels(u, *rest))
    assert same_bits(got, reference.noisy_levels(u, *rest))


def test_a_program_that_makes_several_copies_makes_the_same(monkeypatch):
    u, rest = images(3, 5, 7), arguments(7)
    expected = kernels.noisy_levels(u, *rest)
    for programs in (1, 6, 9):
        monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", programs)
        assert same_bits(kernels.noisy_levels(u, *rest), expected)


def test_one_launch_with_enough_programs():
    u = torch.empty(1, 3, 32, 32, dtype=torch.uint8, device="meta")
    rest = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in arguments(4096)]
    rest[3] = rest[3][:1]
    with recording() as launches:
        out = kernels.noisy_levels(u, *rest)
    assert out.shape == (4096, 3, 32, 32) and len(launches) == 1
    assert launches[0].programs >= 600


@pytest.mark.parametrize(
    "change", ["dtype", "copies", "ids", "guide", "rows of the guide", "empty"]
)
def test_raw_arguments_that_do_not_fit_are_refused(change):
    u, rest = images(4, 5), arguments(2)
    if change == "dtype":
        u = u.int()
    elif change == "copies":
        rest[-1] = torch.int32
    elif change == "ids":
        rest[3] = rest[3][:2]
    elif change == "guide":
        rest[1] = rest[1].int()
    elif change == "rows of the guide":
        rest[1] = rest[1][:-1]
    else:
        u = u[:, :0]
    with pytest.raises((TypeError, ValueError), match="expected"):
        kernels.noisy_levels(u, *rest)
