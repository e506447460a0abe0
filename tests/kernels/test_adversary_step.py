"""adversary_step's kernels: the reference in every ball, norm, dtype, layout, size and order.

tests/operations/test_adversary_step.py, which runs on this backend too, tests what the operation
computes. Here small images are also forced through the kernel for those too large for registers.
"""

from __future__ import annotations

import itertools
from typing import Any

import phantom
import pytest
import torch
from values import scalar

import drf_fast
from drf_fast import balls
from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import adversary_step as kernels
from drf_fast.kernels.launch import recording

BALLS = ("none", *balls.BALLS)
NORMS = ("image", "batch", "none")
CLAMPS = ((0.0, 1.0), (0.1, 0.9), None)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(params=["in registers", "in passes"])
def form(request, monkeypatch):
    """Both forms of the kernel, the second one in many tiles."""
    if request.param == "in passes":
        monkeypatch.setattr(kernels, "_IN_REGISTERS", 0)
        monkeypatch.setattr(kernels, "_TILE", 64)


def case(
    samples: int, shape: tuple[int, ...], dtype: torch.dtype, layout: Any = LAYOUTS[0]
) -> tuple[torch.Tensor, ...]:
    """grad, x, x_adv of four images: lengths on both sides of epsilon, one zero gradient."""
    generator = torch.Generator().manual_seed(10 * samples + sum(shape))
    x = torch.rand(4, *shape, generator=generator, dtype=torch.float64)
    way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    reach = torch.tensor([0.0, 0.2, 0.6, 0.9]).reshape(4, *[1] * len(shape))
    way = way * reach / way.flatten(1).norm(dim=1).reshape(reach.shape)
    grad = torch.randn(4 * samples, *shape, generator=generator, dtype=torch.float64)
    grad[-samples:] = 0
    tensors = (grad, x, (x + way).clamp(0, 1))
    return tuple(t.to(dtype).contiguous(memory_format=layout) for t in tensors)


def parameters(
    ball: str = "hard", grad_norm: str = "image", clamp: Any = (0.0, 1.0), lam: float = 0.7
) -> tuple[Any, ...]:
    """The arguments after grad, x, x_adv; step size, epsilon and lambda bind for some images."""
    numbers = [scalar(value) for value in (0.4, 0.5, lam, 0.25)]
    ids = torch.tensor([5, 2**32 - 1, 0, 8])
    return (*numbers, torch.tensor(-9), ids, ball, grad_norm, clamp)


def assert_is_the_reference(tensors: Any, rest: Any) -> tuple[torch.Tensor, ...]:
    """Up to rounding; distance and noise must be those of the images that it returns."""
    got, noisy, distance = result = kernels.adversary_step(*tensors, *rest)
    exact, _, _ = reference.adversary_step(*(t.double() for t in tensors), *rest)
    expected = reference.adversary_step(*tensors, *rest)
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    error = (got.double() - exact).abs()
    rounding = torch.finfo(got.dtype).eps / 2 if got.dtype.itemsize == 2 else 0.0
    tolerance = 1e-14 if got.dtype == torch.float64 else 1e-6
    assert bool((error <= (tolerance + rounding) * exact.abs().clamp(min=1.0)).all()), rest[-3:]
    true = (got.double() - tensors[1].double()).flatten(1).norm(dim=1)
    assert torch.allclose(distance.double(), true, rtol=1e-6, atol=0), rest[-3:]
    sigma, key, ids = rest[3:6]
    samples = noisy.shape[0] // got.shape[0]
    zero = torch.zeros((), dtype=torch.int64)
    repeated = reference.noisy_repeat(got, sigma, key, ids, zero, samples, "train")
    assert torch.equal(noisy, repeated)
    return result


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_choice_is_the_reference(form, dtype, layout):
    tensors = case(2, (3, 5, 7), dtype, layout)
    choices = list(itertools.product(BALLS, NORMS, CLAMPS))
    # All combinations for one dtype and layout; for the others a sample that has every value.
    everywhere = dtype == torch.float32 and layout == torch.contiguous_format
    for ball, grad_norm, clamp in choices if everywhere else choices[::7]:
        assert_is_the_reference(tensors, parameters(ball, grad_norm, clamp))


@pytest.mark.parametrize("shape, m", [((1,), 1), ((33,), 5), ((1, 28, 28), 3), ((3, 32, 32), 4)])
def test_odd_and_common_sizes(form, shape, m, monkeypatch):
    if len(shape) == 3:
        monkeypatch.setattr(kernels, "_TILE", 1024)
    assert_is_the_reference(case(m, shape, torch.float32), parameters("excess"))


def test_an_image_that_no_program_holds():
    tensors = case(1, (3, 48, 50), torch.bfloat16)
    assert_is_the_reference(tensors, parameters("prox", "batch"))


@pytest.mark.parametrize("ball", ["prox", "excess", "shrink", "udr"])
@pytest.mark.parametrize("lam", [0.0, 1.0, 2.5, float("inf")])
def test_prices_at_and_beyond_their_ends(form, ball, lam):
    tensors = case(2, (2, 3, 7), torch.float32)
    got = assert_is_the_reference(tensors, parameters(ball, lam=lam))
    if lam == 0.0:
        free = kernels.adversary_step(*tensors, *parameters("none"))
        assert all(torch.equal(a, b) for a, b in zip(got, free, strict=True))
    if lam >= 1.0 and ball == "excess":
        hard = kernels.adversary_step(*tensors, *parameters("hard"))
        assert all(torch.equal(a, b) for a, b in zip(got, hard, strict=True))


@pytest.mark.parametrize("grad_norm", NORMS)
def test_zero_gradients_move_nothing(form, grad_norm):
    grad, x, _ = case(2, (2, 3, 7), torch.float32)
    for ball in BALLS:
        rest = parameters(ball, grad_norm)
        got, noisy, distance = kernels.adversary_step(torch.zeros_like(grad), x, x, *rest)
        assert torch.equal(got, x) and not distance.any() and bool(noisy.isfinite().all())


@pytest.mark.parametrize("clamp", [(0.0, 1.0), None], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_spreads_as_in_the_reference(form, value, clamp):
    for place, ball in itertools.product(range(3), BALLS):
        tensors = case(1, (2, 3, 7), torch.float32)
        tensors[place][1, 1, 2, 3] = value
        rest = parameters(ball, NORMS[place], clamp)
        got = kernels.adversary_step(*tensors, *rest)
        for a, b in zip(got, reference.adversary_step(*tensors, *rest), strict=True):
            assert torch.equal(a.isnan(), b.isnan()), (place, ball)
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True), (place, ball)


@pytest.mark.parametrize("name", ["step_size", "epsilon", "lam"])
def test_parameters_that_are_no_numbers_act_as_in_the_reference(name):
    tensors = case(2, (2, 3, 7), torch.float32)
    for value, ball in itertools.product((float("nan"), float("inf")), BALLS):
        rest = list(parameters(ball))
        rest[("step_size", "epsilon", "lam").index(name)] = scalar(value)
        got = kernels.adversary_step(*tensors, *rest)
        for a, b in zip(got, reference.adversary_step(*tensors, *rest), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True), (value, ball)


def test_any_strides_come_in_and_the_order_of_x_goes_out(form):
    grad, x, x_adv = case(2, (3, 6, 8), torch.float32)
    rest = parameters()
    expected = kernels.adversary_step(grad, x, x_adv, *rest)
    turned = [t.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1) for t in (grad, x, x_adv)]
    sparse = [torch.stack([t, t], dim=-1)[..., 1] for t in (grad, x, x_adv)]
    for tensors in (turned, sparse, [turned[0], x, sparse[2]], [grad, turned[1], x_adv]):
        got = kernels.adversary_step(tensors[0], tensors[1], tensors[2], *rest)
        assert got[0].stride() == torch.empty_like(tensors[1]).stride()
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    one = x[:1].expand(4, -1, -1, -1)
    got = kernels.adversary_step(grad, one, one, *rest)
    for a, b in zip(
        got, kernels.adversary_step(grad, one.clone(), one.clone(), *rest), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("grad_norm", NORMS)
def test_the_order_of_programs_changes_nothing(form, every_order, grad_norm):
    for layout in LAYOUTS:
        tensors, rest = case(3, (3, 5, 7), torch.bfloat16, layout), parameters("hard", grad_norm)
        every_order(lambda t=tensors, r=rest: kernels.adversary_step(*t, *r))


def test_arguments_stay_unchanged():
    tensors, rest = case(2, (3, 5, 7), torch.float32), parameters("hard", "batch")
    before = [t.clone() for t in tensors]
    kernels.adversary_step(*tensors, *rest)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def launches(shape: tuple[int, ...], grad_norm: str, batch: int = 64, m: int = 8) -> list[str]:
    def images(rows: int) -> torch.Tensor:
        return torch.empty(rows, *shape, device="meta")

    numbers = [torch.empty((), dtype=torch.float64, device="meta") for _ in range(4)]
    key = torch.empty((), dtype=torch.int64, device="meta")
    ids = torch.empty(batch, dtype=torch.int64, device="meta")
    with recording() as recorded:
        got, noisy, distance = kernels.adversary_step(
            images(batch * m), images(batch), images(batch), *numbers, key, ids, "hard", grad_norm,
            (0.0, 1.0),
        )  # fmt: skip
    assert got.shape == (batch, *shape) and noisy.shape == (batch * m, *shape)
    assert distance.shape == (batch,)
    return [launch.kernel.fn.__name__ for launch in recorded]


def test_a_step_is_one_launch_or_two_and_one_more_where_all_norms_come_first():
    for shape in ((1, 28, 28), (3, 32, 32), (1, 64, 64)):
        assert launches(shape, "image") == ["step_in_registers_kernel"]
        assert launches(shape, "batch") == ["sum_copies_kernel", "step_in_registers_kernel"]
    for shape in ((3, 64, 64), (3, 224, 224), (3, 4096, 4096)):
        assert launches(shape, "none") == ["step_in_passes_kernel", "noisy_repeat_kernel"]
        assert len(launches(shape, "batch")) == 3


def test_a_step_of_the_attack_is_two_launches():
    """All of a PGD step but the network; the first noise is a separate launch."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    x, ball = torch.rand(2, 3, 2, 2), drf_fast.HardBall(1.0)
    with phantom.watch() as traces:
        drf_fast.attack(
            model, x, torch.tensor([0, 2]), sigma=0.5, num_samples=2, steps=3, ball=ball
        )
    names = [trace.name for trace in traces]
    assert names == [
        "noisy_repeat_kernel", *["smooth_ce_kernel", "step_in_registers_kernel"] * 3,
    ]  # fmt: skip


def test_the_tile_of_the_noise_idles_few_lanes():
    for octets, m, lanes in itertools.product((1, 25, 96, 128), (1, 2, 3, 8, 16), (512, 1024)):
        rows, groups = kernels._noise_tile(lanes, octets, m)
        assert rows * groups == lanes and groups >= 64
    assert kernels._noise_tile(1024, 96, 4) == (4, 256)  # 3x32x32: no lane is masked
    assert kernels._noise_tile(1024, 96, 8) == (4, 256)


@pytest.mark.parametrize(
    "change", ["dtype", "shape", "rows", "rows of x_adv", "ids", "ids dtype", "empty"]
)
def test_raw_arguments_that_do_not_fit_are_refused(change):
    grad, x, x_adv = case(2, (2, 3, 3), torch.float32)
    rest = list(parameters())
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
    else:
        grad, x, x_adv, rest[5] = grad[:0], x[:0], x_adv[:0], rest[5][:0]
    with pytest.raises((TypeError, ValueError), match="expected"):
        kernels.adversary_step(grad, x, x_adv, *rest)
