"""The kernels of the three losses: against float64, in any layout, order and tile; memory; errors.

What the losses have to compute is in test_smooth_ce.py, test_consistency_loss.py and
test_macer_loss.py of the folder above, which run on these kernels too.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import like_gpu
import on_gpu
import on_ptx
import phantom
import pytest
import torch
from kernel_sessions import SHARE

from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import loss_call
from drf_fast.kernels.launch import recording

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Name, and the arguments between target and need_grad.
LOSSES: dict[str, tuple[Any, ...]] = {
    "smooth_ce": ("mean",),
    "consistency_loss": (scalar(10.0), scalar(0.5), "mean"),
    "macer_loss": (scalar(0.5), scalar(12.0), scalar(8.0), scalar(16.0)),
}
# Reads of the logits where they do not stay in registers.
PASSES = {"smooth_ce": 2, "consistency_loss": 3, "macer_loss": 3}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, scale: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Most labels are the predicted class, so that the margin of macer_loss plays its part."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    target = torch.softmax(16 * logits, 2).mean(1).argmax(1)
    target[::3] = torch.randint(shape[2], target[::3].shape, generator=generator)
    return logits.to(dtype), target


def kernel(name: str, logits: torch.Tensor, target: torch.Tensor, need_grad: bool = True) -> Any:
    module = importlib.import_module(f"drf_fast.kernels.{name}")
    return getattr(module, name)(logits, target, *LOSSES[name], need_grad)


def truth(name: str, logits: torch.Tensor, target: torch.Tensor) -> Any:
    return getattr(reference, name)(logits.double(), target, *LOSSES[name], True)


def assert_true(name: str, logits: torch.Tensor, target: torch.Tensor, got: Any) -> None:
    """Value and gradient within 1e-6 of the float64 reference, and the rounding of the output."""
    (value, grad), (true_value, true_grad) = got, truth(name, logits, target)
    exact = logits.dtype == torch.float64
    assert value.dtype == (torch.float64 if exact else torch.float32)
    assert grad.dtype == logits.dtype and grad.shape == logits.shape
    tolerance = 1e-12 if exact else 1e-6
    of_logarithms = error_of_logarithms(name, logits)
    error = abs(float(value) - float(true_value))
    assert error <= tolerance * abs(float(true_value)) + of_logarithms
    info = torch.finfo(logits.dtype)
    rounding = 0.5 * info.eps * true_grad.abs() + 0.5 * info.smallest_normal * info.eps
    error = (grad.double() - true_grad).abs()
    # The slope and its mean over the classes, times F_i / (B m).
    slope = 2 * of_logarithms * logits.double().softmax(2) / math.prod(logits.shape[:2])
    allowed = 1.001 * rounding + tolerance * true_grad.abs().max() + slope
    assert bool((error <= allowed).all())


# Whether this session computes as hardware does: approximations, sums in an order of their own.
HARDWARE = like_gpu.CHOSEN or on_gpu.CHOSEN or on_ptx.CHOSEN


def error_of_logarithms(name: str, logits: torch.Tensor) -> float:
    """What lam times the gap of consistency_loss may be off by on hardware.

    With u = 2^-24 (2^-53 for float64) and L the largest |log F|: log Fbar inherits the relative
    error of Fbar (at most 8 u: exponential, share, product, mean), the mean of log F that of the
    row's sum (at most 8 u), and each of the two logarithms and their difference is off by up to
    2 u of its value.
    """
    if name != "consistency_loss" or not HARDWARE:
        return 0.0
    unit = 2.0**-53 if logits.dtype == torch.float64 else 2.0**-24
    largest = -float(logits.double().log_softmax(2).min())
    return float(LOSSES[name][0]) * (16 + 4 * largest) * unit


def same_but_for_the_order_of_sums(
    name: str, logits: torch.Tensor, got: Any, expected: Any
) -> bool:
    """Equal bits; on hardware, whose sums follow the layout, within 8 u of the largest number.

    Every number is a row's factor times what belongs to its class alone; the factor inherits the
    relative error of the row's sum, at most 3 u for each of the two orders, and is rounded twice.
    The gap of consistency_loss is off in both, by ``error_of_logarithms`` at most. The slopes of
    macer_loss are made of quantiles and densities: a tail's 8 u are 8 u of 1 over the density
    there, of which the loss has a product with a sum over samples, 32 u together. A half precision
    may then round to its neighbour.
    """
    if not HARDWARE:
        return same_bits(got, expected)
    of_logarithms = 2 * error_of_logarithms(name, logits)
    rows = math.prod(logits.shape[:2])
    within = []
    for a, b in zip(got, expected, strict=True):
        unit = 2.0**-53 if a.dtype == torch.float64 else 2.0**-24
        rounding = torch.finfo(a.dtype).eps * b.double().abs() if a.dtype.itemsize == 2 else 0.0
        allowed = (32 if name == "macer_loss" else 8) * unit * b.double().abs().max() + rounding
        allowed = allowed + (2 * of_logarithms / rows if b.dim() else of_logarithms)
        within.append(bool(((a.double() - b.double()).abs() <= allowed).all()))
    return all(within)


def same_bits(got: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.fixture
def small_blocks(monkeypatch):
    """No row fits into registers, and a block holds a few classes."""
    monkeypatch.setattr(loss_call, "_LONG_ROWS", 0)
    monkeypatch.setattr(loss_call, "_SHORT_ROWS", 0)
    monkeypatch.setattr(loss_call, "_PASSING_ROWS", 32)


# ----------------------------------------------------------------------------------------- values


@each_loss
@each_dtype
@pytest.mark.parametrize(
    "shape",
    [(5, 1, 2), (1, 3, 7), (64, 4, 10), (3, 16, 100), (2, 16, 1000), (1, 4, 4097), (1, 3, 10000)],
    ids=str,
)
def test_values_and_gradients_are_within_1e_6_of_float64(name, dtype, shape):
    logits, target = case(shape, dtype)
    assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
@pytest.mark.parametrize(
    "shape, dtype",
    [
        # float64, since the interpreter adds the samples one after the other, a GPU in a tree.
        ((1, 1000, 10), torch.float64),
        ((1, 130, 200), torch.float32),
        ((1, 2, 100_000), torch.float32),
    ],
    ids=str,
)
def test_many_samples_and_many_classes(name, shape, dtype):
    logits, target = case(shape, dtype, scale=0.15)
    assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
@hypothesis.given(
    batch=st.integers(1, 5),
    samples=st.integers(1, 9),
    classes=st.integers(2, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 0.2, 3.0, 30.0]),
    excluded=st.integers(0, 2),
    passing=st.booleans(),
    data=st.data(),
)
@hypothesis.settings(max_examples=60 // SHARE, deadline=None, derandomize=True)
def test_any_shape_is_within_rounding_of_the_float64_reference(
    name, batch, samples, classes, dtype, scale, excluded, passing, data
):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = (torch.randn(batch, samples, classes, generator=generator) * scale).to(dtype)
    for _ in range(excluded):  # a logit of -inf, somewhere
        where = torch.randint(batch * samples * classes, (1,), generator=generator)
        if classes > 2:
            logits.view(-1)[where] = -math.inf
    target = torch.randint(classes, (batch,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        if passing:
            for constant in ("_LONG_ROWS", "_SHORT_ROWS"):
                patch.setattr(loss_call, constant, 0)
            patch.setattr(loss_call, "_PASSING_ROWS", 64)
        value, grad = kernel(name, logits, target)
    true_value, true_grad = truth(name, logits, target)
    assert value.isfinite() == true_value.isfinite() and bool(grad.isfinite().all())
    if true_value.isfinite():
        exact = dtype == torch.float64
        assert float(value) == pytest.approx(float(true_value), rel=2e-6, abs=2e-6)
        # Where F_i^k differ wildly, the slopes lam * gap of float32 reach several hundred.
        largest = max(1.0 / (batch * samples), float(true_grad.abs().max()))
        tolerance = 1e-11 if exact else 1e-5 + torch.finfo(dtype).eps
        assert float((grad.double() - true_grad).abs().max()) <= tolerance * largest


@each_loss
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_blocks_that_pass_by_give_what_registers_give(name, classes, small_blocks):
    for dtype in DTYPES:
        logits, target = case((3, 3, classes), dtype)
        with recording() as launches:
            kernel(name, logits, target)
        assert launches[0].constants["RESIDENT"] is False
        assert_true(name, logits, target, kernel(name, logits, target))


@each_loss
def test_blocks_of_nothing_but_excluded_classes(name, small_blocks):
    logits, target = case((2, 2, 600))
    logits[:, :, :500] = -math.inf
    logits[:, :, 550:] = -math.inf
    target[:] = torch.tensor([500, 549])
    value, grad = kernel(name, logits, target)
    expected = kernel(name, logits[:, :, 500:550], target - 500)
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
    largest = float(expected[1].abs().max())
    assert float((grad[:, :, 500:550] - expected[1]).abs().max()) <= 2e-6 * largest
    assert not grad[:, :, :500].any() and not grad[:, :, 550:].any()


@each_loss
def test_images_that_share_a_program_are_as_single_ones(name, monkeypatch):
    logits, target = case((11, 3, 7))
    single = kernel(name, logits, target)
    monkeypatch.setattr(loss_call, "_PROGRAMS", 1)
    with recording() as launches:
        kernel(name, logits, target)
    assert launches[0].constants["IMAGES"] == 8 and launches[0].programs == 2
    assert same_but_for_the_order_of_sums(name, logits, kernel(name, logits, target), single)


@each_loss
def test_programs_in_any_order_give_the_same_bits(name, every_order, small_blocks):
    logits, target = case((7, 3, 20))
    value, grad = every_order(lambda: kernel(name, logits, target))
    assert_true(name, logits, target, (value, grad))


# ---------------------------------------------------------------------------------- layouts, memory


@each_loss
@each_dtype
def test_no_layout_changes_the_numbers_or_touches_its_neighbours(name, dtype):
    for classes in (2, 10, 16):
        logits, target = case((2, 3, classes), dtype)
        value, grad = kernel(name, logits, target)
        gaps = torch.full((5, 7, classes + 3), math.nan, dtype=dtype)[1::2, ::3, 1:-2]
        layouts = {
            "gaps between rows": gaps.copy_(logits),
            "sample-major": logits.transpose(0, 1).contiguous().transpose(0, 1),
            "classes apart": logits.repeat_interleave(2, 2)[..., ::2],
            "classes outermost": logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        }
        for layout, view in layouts.items():
            result = kernel(name, view, target)
            same = same_but_for_the_order_of_sums(name, logits, result, (value, grad))
            assert same, (layout, classes)
            assert result[1].stride() == torch.empty_like(view).stride(), layout
        equal = logits[:, :1].expand(2, 3, classes)
        dense = kernel(name, equal.contiguous(), target)
        result = kernel(name, equal, target)
        assert same_but_for_the_order_of_sums(name, equal, result, dense)


@each_loss
@pytest.mark.parametrize("shape", [(3, 2, 10), (2, 16, 33), (1, 3, 1000)], ids=str)
@pytest.mark.parametrize("major", ["image", "sample"])
def test_logits_are_read_once_and_the_gradient_is_written_once(name, shape, major):
    logits, target = case(shape)
    if major == "sample":
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    with phantom.watch() as traces:
        kernel(name, logits, target)
    batch, rows = shape[0], logits.numel() * logits.element_size()
    weights = sum(isinstance(argument, torch.Tensor) for argument in LOSSES[name])
    trace = traces[0]
    assert trace.bytes("load") == rows + batch * (8 + 8 * weights)
    assert trace.bytes("store") == trace.distinct_bytes("store") == rows + batch * 4
    assert not trace.outside() and not trace.races()


@each_loss
def test_logits_that_pass_by_are_read_as_often_as_it_says(name, small_blocks):
    logits, target = case((2, 2, 300))
    for need_grad in (True, False):
        with phantom.watch() as traces:
            kernel(name, logits, target, need_grad)
        reads = PASSES[name] - (not need_grad)
        rows = logits.numel() * 4
        weights = sum(isinstance(argument, torch.Tensor) for argument in LOSSES[name])
        assert traces[0].bytes("load") == reads * rows + 2 * (8 + 8 * weights)
        assert traces[0].bytes("store") == rows * need_grad + 2 * 4
        assert not traces[0].outside() and not traces[0].races()


@each_loss
@pytest.mark.parametrize("classes", [16, 17])  # strides are passed divided by 16, and as they are
def test_offsets_beyond_2_to_the_31_stay_inside(name, classes):
    batch = 2**31 // classes + 5
    logits = torch.empty((3, batch, classes), device="meta").transpose(0, 1)
    target = torch.empty(batch, dtype=torch.int64, device="meta")
    with recording() as launches:
        kernel(name, logits, target)
    last = launches[0].programs - 1
    trace = phantom.run(launches[0], (0, last // 2, last))
    assert not trace.outside() and not trace.races()
    assert trace.bytes("store") == trace.distinct_bytes("store")


@each_loss
@each_dtype
def test_without_a_gradient_the_value_is_the_same_and_nothing_else_is_written(name, dtype):
    logits, target = case((3, 4, 10), dtype)
    before = logits.clone()
    with phantom.watch() as traces:
        value, grad = kernel(name, logits, target, False)
    full = kernel(name, logits, target)[0]
    assert same_but_for_the_order_of_sums(name, logits, (value,), (full,))
    assert grad.shape == (0,) and grad.dtype == dtype
    assert traces[0].bytes("store") == 3 * value.element_size()
    assert torch.equal(logits, before)


@each_loss
def test_a_sum_or_mean_takes_two_launches_and_single_losses_one(name):
    logits, target = (tensor.to("meta") for tensor in case((600, 4, 10)))
    arguments = LOSSES[name]
    reductions = ("mean",) if name == "macer_loss" else ("none", "sum", "mean")
    for reduction in reductions:
        chosen = tuple(reduction if a == "mean" else a for a in arguments)
        module = importlib.import_module(f"drf_fast.kernels.{name}")
        with recording() as launches:
            value, grad = getattr(module, name)(logits, target, *chosen, True)
        assert len(launches) == (1 if reduction == "none" else 2)
        assert value.shape == ((600,) if reduction == "none" else ())
        assert grad.shape == logits.shape


@pytest.mark.parametrize("name", ["smooth_ce", "consistency_loss"])
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_reductions_are_those_of_the_single_losses(name, batch, monkeypatch):
    monkeypatch.setattr(loss_call, "_SUMMED", 32)  # so that the last one adds up three blocks
    logits, target = case((batch, 1, 2))
    module = importlib.import_module(f"drf_fast.kernels.{name}")

    def run(reduction: str) -> Any:
        chosen = tuple(reduction if a == "mean" else a for a in LOSSES[name])
        return getattr(module, name)(logits, target, *chosen, True)

    (single, grad), (total, grad_total), (mean, grad_mean) = map(run, ("none", "sum", "mean"))
    assert torch.equal(grad, grad_total)
    assert float(total) == pytest.approx(float(single.double().sum()), rel=1e-7)
    assert float(mean) == pytest.approx(float(single.double().mean()), rel=1e-7)
    assert torch.allclose(grad_mean * batch, grad, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------- bad input


def poisoned(poison: Any, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Six images, of which 2 and 4 are bad."""
    logits, target = case((6, 3, classes))
    if poison == "label":
        target[2], target[4] = classes, -1
    elif poison == "a label far away":
        target[2], target[4] = 2**32, -(2**32) + 1
    elif poison == "only -inf":
        logits[2, 2], logits[4, 0] = -math.inf, -math.inf
    elif poison == "at the label":
        logits[2, 1, target[2]], logits[4, 0, target[4]] = math.nan, math.inf
    elif poison == "a whole row":
        logits[2, 1], logits[4, 2] = math.nan, math.inf
    else:
        logits[2, 1, classes - 1], logits[4, 0, 0] = poison, poison
    return logits, target


POISONS = (
    math.nan,
    math.inf,
    "only -inf",
    "at the label",
    "a whole row",
    "label",
    "a label far away",
)


@each_loss
@pytest.mark.parametrize("passing", [False, True], ids=["registers", "blocks"])
@pytest.mark.parametrize("poison", POISONS, ids=str)
@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
def test_bad_values_make_their_image_nan_and_no_other(name, poison, passing, request):
    if passing:
        request.getfixturevalue("small_blocks")
    logits, target = poisoned(poison)
    module = importlib.import_module(f"drf_fast.kernels.{name}")
    good = torch.tensor([0, 1, 3, 5])
    if name != "macer_loss":
        chosen = tuple("none" if a == "mean" else a for a in LOSSES[name])
        losses, grad = getattr(module, name)(logits, target, *chosen, True)
        expected, expected_grad = getattr(module, name)(logits[good], target[good], *chosen, True)
        assert losses.isnan().tolist() == [False, False, True, False, True, False]
        assert torch.equal(losses[good], expected) and torch.equal(grad[good], expected_grad)
    value, grad = kernel(name, logits, target)
    assert bool(value.isnan())
    assert bool(grad[[2, 4]].isnan().all() and grad[good].isfinite().all())


@each_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, "only -inf", "label"], ids=str)
def test_on_request_bad_values_are_refused_in_the_words_of_the_reference(name, poison, monkeypatch):
    logits, target = poisoned(poison)
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    with pytest.raises(ValueError) as expected:
        truth(name, logits, target)
    for need_grad in (True, False):
        with pytest.raises(ValueError) as got:
            kernel(name, logits, target, need_grad)
        assert str(got.value) == str(expected.value)
    good, labels = case((4, 3, 10))
    assert bool(kernel(name, good, labels)[0].isfinite())


@each_loss
def test_a_call_that_could_not_be_safe_is_refused(name):
    logits, target = case((4, 3, 5))
    for bad_logits, bad_target in (
        (logits, target[:3]),
        (logits, target.int()),
        (logits.int(), target),
        (logits[0], target),
        (logits[..., :1], target),
        (logits[:0], target[:0]),
        (logits.to("meta"), target),
        (torch.zeros(1, 2**15, 2).expand(4, -1, -1), target),
    ):
        with pytest.raises((TypeError, ValueError), match=r"loss|smooth_ce|kernels"):
            kernel(name, bad_logits, bad_target)
