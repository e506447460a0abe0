"""noisy_repeat's kernels: every bit is the reference's, in any dtype, layout, size and order.

tests/operations/test_noise.py, which runs on this backend too, tests what the operation computes.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
import values

from drf_fast.backends.reference import noise
from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import noisy_repeat as kernels
from drf_fast.kernels.launch import launch, recording
from drf_fast.kernels.normals import cos_sin_turns, normal_radius, philox
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.tensors import FLOATS as DTYPES

LAYOUTS = (torch.contiguous_format, torch.channels_last)
KEYS = (0, -1, 2**62, -(2**63))
same_bits = functools.partial(values.same_bits, strides=True)
IDS = torch.tensor([0, 2**32 - 1, 77])


def integer(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def arguments(m: int, stream: str = "train", key: int = -5, offset: int = 0) -> tuple[Any, ...]:
    """The arguments after x, for three images."""
    sigma = torch.tensor(0.3, dtype=torch.float64)
    return sigma, integer(key), IDS, integer(offset), m, stream


def images(shape: tuple[int, ...], dtype: torch.dtype, layout: Any = LAYOUTS[0]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=layout)


# ------------------------------------------------------------------------------ device functions


@triton.jit
def philox_kernel(words, key, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    c0 = tl.load(words + at).to(tl.uint32)
    c1 = tl.load(words + BLOCK + at).to(tl.uint32)
    c2 = tl.load(words + 2 * BLOCK + at).to(tl.uint32)
    c3 = tl.load(words + 3 * BLOCK + at).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, tl.load(key))
    tl.store(out + at, w0.to(tl.int64))
    tl.store(out + BLOCK + at, w1.to(tl.int64))
    tl.store(out + 2 * BLOCK + at, w2.to(tl.int64))
    tl.store(out + 3 * BLOCK + at, w3.to(tl.int64))


@triton.jit
def pieces_kernel(words, r, cosine, sine, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + at).to(tl.uint32)
    c, s = cos_sin_turns(word)
    tl.store(r + at, normal_radius(word))
    tl.store(cosine + at, c)
    tl.store(sine + at, s)


@pytest.mark.parametrize("key", [0, -1, 0x299F31D0A4093822, -(2**63) + 12345])
def test_philox_words_are_those_of_the_reference_for_any_counter_and_key(key):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(2**32, (4, 256), generator=generator)
    words[:, :3] = torch.tensor([0, 2**32 - 1, 1])
    out = torch.empty_like(words)
    launch(philox_kernel, 1, words, integer(key), out, BLOCK=256)
    expected = noise.philox(tuple(words), integer(key))  # type: ignore[arg-type]
    assert torch.equal(out, torch.stack(expected))


def test_radius_cosine_and_sine_have_the_bits_of_the_reference():
    corners = [int(2.0 ** (e / 2)) for e in range(18, 64)]
    words = torch.cat(
        [
            torch.arange(2**17),
            torch.arange(2**32 - 2**17, 2**32),
            torch.arange(0, 2**32, 4093),
            *[torch.arange(c - 300, c + 300) for c in corners],
        ]
    )
    # The interpreter is fastest with large programs; a compiler unrolls a tile within each thread.
    block = 2**16 if os.environ.get("TRITON_INTERPRET") == "1" else 2**10
    words = torch.nn.functional.pad(words, (0, -words.numel() % block))
    r, cosine, sine = (torch.empty(words.shape) for _ in range(3))
    launch(pieces_kernel, words.numel() // block, words, r, cosine, sine, BLOCK=block)
    expected_cosine, expected_sine = noise.cos_sin_turns(words)
    assert same_bits(r, noise.normal_radius(words))
    assert same_bits(cosine, expected_cosine) and same_bits(sine, expected_sine)


# ---------------------------------------------------------------------------------- the operation


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_is_the_references(dtype, layout):
    shapes = ((1, 1, 1), (3, 5, 7), (1, 31, 33), (3, 16, 24))
    for shape, m, offset in zip(shapes, (1, 3, 5, 4), (0, 2**32 - 3, 9, 2**31), strict=True):
        x = images(shape, dtype, layout)
        rest = arguments(m, offset=offset)
        got, expected = kernels.noisy_repeat(x, *rest), reference.noisy_repeat(x, *rest)
        assert same_bits(got, expected), shape


@pytest.mark.parametrize("stream, key", [*zip(STREAM_WORDS, KEYS, strict=True)])
def test_streams_and_64_bit_keys_reach_the_generator(stream, key):
    x = images((40,), torch.float32)
    rest = arguments(2, stream, key)
    assert same_bits(kernels.noisy_repeat(x, *rest), reference.noisy_repeat(x, *rest))


@pytest.mark.parametrize("pixels", [31, 32, 33, 255, 1024, 1025])
def test_sizes_beside_the_blocks(pixels):
    x = images((pixels,), torch.float32)
    rest = arguments(2)
    assert same_bits(kernels.noisy_repeat(x, *rest), reference.noisy_repeat(x, *rest))


def test_a_program_that_makes_several_copies_makes_the_same(monkeypatch):
    x, rest = images((3, 5, 7), torch.float32), arguments(7)
    expected = kernels.noisy_repeat(x, *rest)
    for programs in (1, 6, 9):
        monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", programs)
        assert same_bits(kernels.noisy_repeat(x, *rest), expected)


def test_no_offset_is_offset_0():
    x, rest = images((40,), torch.float32), list(arguments(2))
    expected = kernels.noisy_repeat(x, *rest)
    rest[3] = None
    assert same_bits(kernels.noisy_repeat(x, *rest), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_stays_so(dtype):
    x = images((1, 4, 9), dtype)
    x.view(-1)[:5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 3e-40])
    rest = arguments(1)
    got, expected = kernels.noisy_repeat(x, *rest), reference.noisy_repeat(x, *rest)
    assert torch.equal(got.isnan(), expected.isnan())
    assert same_bits(got.nan_to_num(), expected.nan_to_num())


def test_any_strides_come_in():
    x, rest = images((3, 6, 8), torch.float32), arguments(2)
    expected = kernels.noisy_repeat(x, *rest)
    turned = x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
    sparse = torch.stack([x, x], dim=-1)[..., 1]
    for strided in (turned, sparse):
        assert torch.equal(kernels.noisy_repeat(strided, *rest), expected)
    one = x[:1].expand(3, -1, -1, -1)
    assert same_bits(kernels.noisy_repeat(one, *rest), kernels.noisy_repeat(one.clone(), *rest))


def test_the_order_of_programs_changes_nothing(every_order):
    for layout in LAYOUTS:
        x, rest = images((3, 17, 23), torch.bfloat16, layout), arguments(3)
        got = every_order(lambda x=x, rest=rest: kernels.noisy_repeat(x, *rest))
        assert same_bits(got, reference.noisy_repeat(x, *rest))
        every_order(lambda got=got: kernels.noisy_repeat_backward(got, 3))


# ----------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_the_rounded_sum_over_the_copies(dtype, layout):
    for shape, m in itertools.product(((1, 1, 1), (3, 5, 7), (2, 37, 29)), (1, 2, 5)):
        grad = images(shape, dtype, layout).repeat_interleave(m, 0) * 0.7
        grad = (grad + torch.randn(grad.shape).to(dtype)).contiguous(memory_format=layout)
        got = kernels.noisy_repeat_backward(grad, m)
        exact = grad.double().reshape(3, m, *shape).sum(1)
        scale = grad.double().abs().reshape(3, m, *shape).sum(1)
        tolerance = 1e-15 if dtype == torch.float64 else 1e-6
        rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
        assert got.dtype == dtype and got.stride() == torch.empty_like(grad[:3]).stride()
        assert bool(((got - exact).abs() <= tolerance * scale + rounding * exact.abs()).all())


def test_copies_are_added_in_order():
    grad = torch.tensor([1e8, 1.0, -1e8, 1.0]).reshape(4, 1)  # in other orders 1 or 2
    assert float(kernels.noisy_repeat_backward(grad, 4)) == 1.0
    assert float(kernels.noisy_repeat_backward(grad.flip(0), 4)) == 0.0


def test_an_expanded_gradient_comes_in():
    grad = torch.tensor(0.5).expand(6, 3, 4, 5)
    got = kernels.noisy_repeat_backward(grad, 3)
    assert got.is_contiguous() and torch.equal(got, torch.full((2, 3, 4, 5), 1.5))


# -------------------------------------------------------------------------------------- the launch


def test_no_launch_is_too_small_for_the_device_or_reads_a_value():
    def launched(batch: int, shape: tuple[int, ...], m: int) -> Any:
        x = torch.empty(batch, *shape, device="meta")
        scalars = [torch.empty((), dtype=d, device="meta") for d in (torch.float64, torch.int64)]
        ids = torch.empty(batch, dtype=torch.int64, device="meta")
        with recording() as launches:
            out = kernels.noisy_repeat(x, *scalars, ids, scalars[1], m, "selection")
        assert out.shape == (batch * m, *shape)
        return launches[0]

    assert launched(1, (3, 32, 32), 4096).programs >= 600  # certification: many copies of one
    assert launched(64, (1, 28, 28), 16).programs >= 500
    # With enough images a program makes all copies, so that x is read once.
    assert launched(256, (3, 32, 32), 8).programs == 256 * 3


@pytest.mark.parametrize("change", ["dtype", "ids", "ids dtype", "scalar", "empty", "rows"])
def test_raw_arguments_that_do_not_fit_are_refused(change):
    x, rest = images((4, 5), torch.float32), list(arguments(2))
    if change == "rows":
        for rows, num_samples in ((7, 2), (10, 4)):
            with pytest.raises(ValueError, match="expected"):
                kernels.noisy_repeat_backward(torch.zeros(rows, 4), num_samples)
        return
    if change == "dtype":
        x = x.int()
    elif change == "ids":
        rest[2] = rest[2][:2]
    elif change == "ids dtype":
        rest[2] = rest[2].int()
    elif change == "scalar":
        x = x[0, 0, 0]
    else:
        x = x[:, :0]
    with pytest.raises((TypeError, ValueError), match="expected"):
        kernels.noisy_repeat(x, *rest)
