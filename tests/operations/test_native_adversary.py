"""adversary_step in C++: bits that no thread count or instruction set changes, and the reference.

What the operation has to compute is in test_adversary_step.py, which runs on this backend too.
"""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from values import scalar

from drf_fast import balls
from drf_fast.backends.native import cpu, library
from drf_fast.backends.reference import operations as reference

pytestmark = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "the C++ core is available"
)

BALLS = ("none", *balls.BALLS)
NORMS = ("image", "batch", "none")
CLAMPS = ((0.0, 1.0), (0.1, 0.9), None)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Odd sizes: below a lane, beside a chunk of 1024 pixels, several chunks and blocks of noise.
SHAPES = ((1, 1, 1), (3, 5, 7), (1, 31, 33), (2, 37, 29))


def case(batch: int, samples: int, shape: tuple[int, ...], dtype: torch.dtype, layout: Any) -> Any:
    """grad, x, x_adv with lengths on both sides of epsilon, and one zero gradient."""
    generator = torch.Generator().manual_seed(batch + 10 * samples + sum(shape))
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.float64)
    way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    reach = torch.linspace(0, 1, batch, dtype=torch.float64).reshape(batch, *[1] * len(shape))
    way = way * reach / way.flatten(1).norm(dim=1).reshape(reach.shape)
    grad = torch.randn(batch * samples, *shape, generator=generator, dtype=torch.float64)
    grad[-samples:] = 0
    tensors = (grad, x, (x + way).clamp(0, 1))
    return tuple(t.to(dtype).contiguous(memory_format=layout) for t in tensors)


def parameters(
    batch: int, ball: str = "hard", grad_norm: str = "image", clamp: Any = (0.0, 1.0)
) -> tuple[Any, ...]:
    """What follows grad, x, x_adv; the price binds in every form."""
    numbers = [scalar(value) for value in (0.4, 0.5, 0.7, 0.25)]
    ids = torch.arange(batch) * 7 + 3
    return (*numbers, torch.tensor(-9), ids, ball, grad_norm, clamp)


def assert_same(got: Any, expected: Any) -> None:
    """The same bits, NaN included, and the same strides."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def assert_rounds_as_the_reference(tensors: Any, rest: Any) -> None:
    """Equal but for the order of sums, in the arithmetic type; halves may then round apart."""
    got, noisy, distance = cpu.adversary_step(*tensors, *rest)
    expected, expected_noisy, expected_distance = reference.adversary_step(*tensors, *rest)
    for a, b in ((got, expected), (noisy, expected_noisy), (distance, expected_distance)):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    arithmetic = torch.finfo(distance.dtype).eps
    images = max(4 * arithmetic, torch.finfo(got.dtype).eps)
    reach = expected.double().abs().clamp(min=1.0)
    assert bool(((got.double() - expected.double()).abs() <= images * reach).all())
    if got.dtype == distance.dtype:
        assert torch.allclose(distance, expected_distance, rtol=64 * arithmetic, atol=images)
    else:  # one rounding apart for every pixel is this far
        true = (got.double() - tensors[1].double()).flatten(1).norm(dim=1)
        assert torch.allclose(distance.double(), true, rtol=1e-6, atol=0)
    _, _, _, sigma, key, ids, *_ = rest
    offset = torch.zeros((), dtype=torch.int64)
    samples = noisy.shape[0] // got.shape[0]
    repeated = reference.noisy_repeat(got, sigma, key, ids, offset, samples, "train")
    assert torch.equal(noisy, repeated)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_choice_agrees_with_the_reference(shape, dtype, layout):
    tensors = case(5, 3, shape, dtype, layout)
    for ball, grad_norm, clamp in itertools.product(BALLS, NORMS, CLAMPS):
        assert_rounds_as_the_reference(tensors, parameters(5, ball, grad_norm, clamp))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    batch=st.integers(1, 9),
    samples=st.integers(1, 6),
    shape=st.lists(st.integers(1, 19), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    ball=st.sampled_from(BALLS),
    grad_norm=st.sampled_from(NORMS),
    clamp=st.sampled_from(CLAMPS),
)
def test_any_shape_in_any_mixture_of_memory_formats(
    batch, samples, shape, dtype, layouts, ball, grad_norm, clamp
):
    tensors = case(batch, samples, tuple(shape), dtype, torch.contiguous_format)
    if len(shape) == 3:
        tensors = [t.contiguous(memory_format=f) for t, f in zip(tensors, layouts, strict=True)]
    assert_rounds_as_the_reference(tensors, parameters(batch, ball, grad_norm, clamp))


@pytest.mark.parametrize("grad_norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch, shape", [(7, (3, 5, 7)), (33, (1, 9, 9)), (1, (2, 37, 29))])
def test_threads_and_instruction_sets_change_no_bit(
    instruction_sets, monkeypatch, batch, shape, dtype, grad_norm
):
    for layout, ball in itertools.product(LAYOUTS, ("excess", "prox", "udr")):
        tensors = case(batch, 3, shape, dtype, layout)
        rest = parameters(batch, ball, grad_norm)
        results: list[Any] = []
        for isa, threads in itertools.product(instruction_sets, (1, 2, 3, 8)):
            library.load().use_isa(isa)
            monkeypatch.setattr(
                "drf_fast.backends.native.adversary.threads_for", lambda *_, n=threads: n
            )
            results.append(cpu.adversary_step(*tensors, *rest))
        for result in results[1:]:
            assert_same(result, results[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 9])
def test_large_images(dtype, batch):
    tensors = case(batch, 2, (3, 224, 224), dtype, torch.contiguous_format)
    assert_rounds_as_the_reference(tensors, parameters(batch, "hard", "batch"))


@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
@pytest.mark.parametrize("grad_norm", NORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_spreads_as_in_the_reference(value, grad_norm, clamp):
    for place, ball, dtype in itertools.product(range(3), BALLS, DTYPES):
        tensors = case(4, 1, (2, 3, 7), dtype, torch.contiguous_format)
        tensors[place][1, 1, 2, 3] = value
        rest = parameters(4, ball, grad_norm, clamp)
        got = cpu.adversary_step(*tensors, *rest)
        expected = reference.adversary_step(*tensors, *rest)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            tolerance = torch.finfo(a.dtype).eps * 8
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ["step_size", "epsilon", "lam"])
def test_parameters_that_are_no_numbers_act_as_in_the_reference(name):
    at = ("step_size", "epsilon", "lam").index(name)
    tensors = case(4, 2, (2, 3, 7), torch.float32, torch.contiguous_format)
    for value, ball in itertools.product((float("nan"), float("inf")), BALLS):
        rest = list(parameters(4, ball))
        rest[at] = scalar(value)
        got = cpu.adversary_step(*tensors, *rest)
        expected = reference.adversary_step(*tensors, *rest)
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True), (value, ball)


def test_any_strides_come_in_and_the_order_of_x_goes_out():
    grad, x, x_adv = case(4, 2, (3, 6, 8), torch.float32, torch.contiguous_format)
    rest = parameters(4)
    expected = cpu.adversary_step(grad, x, x_adv, *rest)
    turned = [t.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1) for t in (grad, x, x_adv)]
    sparse = [torch.stack([t, t], dim=-1)[..., 1] for t in (grad, x, x_adv)]
    for tensors in (turned, sparse, [turned[0], x, sparse[2]], [grad, turned[1], x_adv]):
        got = cpu.adversary_step(tensors[0], tensors[1], tensors[2], *rest)
        assert got[0].stride() == torch.empty_like(tensors[1]).stride()
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    one = x[:1].expand(4, -1, -1, -1)
    got = cpu.adversary_step(grad, one, one, *rest)
    for a, b in zip(got, cpu.adversary_step(grad, one.clone(), one.clone(), *rest), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change", ["dtype", "shape", "rows", "rows of x_adv", "ids", "ids dtype", "ball", "empty"]
)
def test_raw_arguments_that_do_not_fit_are_refused(change):
    grad, x, x_adv = case(4, 2, (2, 3, 3), torch.float32, torch.contiguous_format)
    rest = list(parameters(4))
    if change == "dtype":
        x_adv = x_adv.double()
    elif change == "shape":
        x_adv = x_adv[:, :1]
    elif change == "rows":
        grad = grad[:7]
    elif change == "rows of x_adv":
        x_adv = x_adv.repeat(2, *[1] * (x.dim() - 1))
    elif change == "ids":
        rest[5] = rest[5][:3]
    elif change == "ids dtype":
        rest[5] = rest[5].int()
    elif change == "ball":
        rest[6] = "cube"
    else:
        grad, x, x_adv, rest[5] = grad[:0], x[:0], x_adv[:0], rest[5][:0]
    with pytest.raises((TypeError, ValueError), match="expected"):
        cpu.adversary_step(grad, x, x_adv, *rest)
