"""The losses in C++: bits that no thread count or instruction set changes, memory, accuracy.

What the losses have to compute is in test_smooth_ce.py, test_consistency_loss.py and
test_macer_loss.py, which run on this backend too.
"""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from loss_cases import DTYPES, LOSSES, case, each_loss, in_other_layouts, scalar
from values import same_bits

from drf_fast.backends.native import cpu, library, losses
from drf_fast.backends.reference import operations as reference
from drf_fast.runtime.tensors import DTYPE_NAMES

pytestmark = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "the C++ core is available"
)

# Below, at and beside the widths of vectors, a row of 16, and a chunk of 1024.
CLASSES = (2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 100, 1000, 1024, 1025)


def native(name: str, logits: torch.Tensor, target: torch.Tensor, need_grad: bool = True) -> Any:
    return getattr(cpu, name)(logits, target, *LOSSES[name], need_grad)


# ------------------------------------------------------------------------------------------- bits


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bits(instruction_sets, name, dtype):
    for classes in CLASSES:
        logits, target = case((5, 3, classes), dtype, scale=2.0)
        results = []
        for isa in instruction_sets:
            library.load().use_isa(isa)
            results.append(native(name, logits, target))
        assert all(same_bits(results[0], other) for other in results[1:]), classes


@each_loss
@pytest.mark.parametrize("shape", [(67, 3, 10), (5, 2, 1025), (1, 4, 7)], ids=str)
def test_every_thread_count_gives_the_same_bits(name, shape, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS_PER_THREAD", 1)
    logits, target = case(shape)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native(name, logits, target))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results)


@each_loss
def test_an_image_has_the_same_bits_alone_and_in_any_batch(name):
    logits, target = case((70, 4, 10))
    arguments = [a if a != "mean" else "none" for a in LOSSES[name]]

    def run(part: slice) -> Any:
        value, grad = getattr(cpu, name)(logits[part], target[part], *arguments, True)
        return value, grad * (len(grad) if name == "macer_loss" else 1)

    _, whole = run(slice(0, 64))  # a power of two: the mean's 1/B scales exactly
    for image in (0, 31, 63):
        _, alone = run(slice(image, image + 1))
        assert torch.equal(alone[0], whole[image])


# ------------------------------------------------------------------------------------ the reference


@each_loss
@hypothesis.given(
    batch=st.integers(1, 9),
    samples=st.integers(1, 9),
    classes=st.integers(2, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 0.2, 3.0, 30.0]),
    excluded=st.integers(0, 2),
    data=st.data(),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_is_within_rounding_of_the_float64_reference(
    name, batch, samples, classes, dtype, scale, excluded, data
):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = (torch.randn(batch, samples, classes, generator=generator) * scale).to(dtype)
    for _ in range(excluded):  # a logit of -inf, somewhere
        where = torch.randint(batch * samples * classes, (1,), generator=generator)
        if classes > 2:
            logits.view(-1)[where] = -math.inf
    target = torch.randint(classes, (batch,), generator=generator)
    value, grad = native(name, logits, target)
    true_value, true_grad = getattr(reference, name)(logits.double(), target, *LOSSES[name], True)
    assert value.isfinite() == true_value.isfinite() and bool(grad.isfinite().all())
    if true_value.isfinite():
        exact = dtype == torch.float64
        assert float(value) == pytest.approx(float(true_value), rel=2e-6, abs=2e-6)
        # Where F_i^k differ wildly, the slopes lam * gap of float32 reach several hundred.
        largest = max(1.0 / (batch * samples), float(true_grad.abs().max()))
        tolerance = 1e-11 if exact else 1e-5 + torch.finfo(dtype).eps
        assert float((grad.double() - true_grad).abs().max()) <= tolerance * largest


@each_loss
def test_100_000_classes(name):
    logits, target = case((2, 2, 100_000), scale=0.15)
    value, grad = native(name, logits, target)
    true_value, true_grad = getattr(reference, name)(logits.double(), target, *LOSSES[name], True)
    assert float(value) == pytest.approx(float(true_value), rel=1e-6)
    assert float((grad.double() - true_grad).abs().max()) <= 1e-6 * float(true_grad.abs().max())


@each_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, "only -inf", "label"], ids=str)
def test_bad_values_are_refused_in_the_words_of_the_reference(name, poison):
    logits, target = case((70, 3, 10))
    if poison == "label":
        target[66], target[68] = 10, -1
    elif poison == "only -inf":
        logits[66, 2] = -math.inf
    else:
        logits[66, 1, 9], logits[68, 0, 0] = poison, poison
    with pytest.raises(ValueError) as expected:
        getattr(reference, name)(logits, target, *LOSSES[name], True)
    for need_grad in (True, False):
        with pytest.raises(ValueError) as got:
            native(name, logits, target, need_grad)
        assert str(got.value) == str(expected.value)


# ----------------------------------------------------------------------------------------- memory


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_layout_changes_the_numbers_or_touches_its_neighbours(name, dtype):
    for classes in (2, 3, 5, 8, 10, 17, 33):
        logits, target = case((4, 3, classes), dtype)
        value, grad = native(name, logits, target)
        for layout, view in in_other_layouts(logits).items():
            result = native(name, view, target)
            assert same_bits(result, (value, grad)), (layout, classes)
            assert result[1].stride() == torch.empty_like(view).stride(), layout
        equal = logits[:, :1].expand(4, 3, classes)
        assert same_bits(native(name, equal, target), native(name, equal.contiguous(), target))


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_beyond_the_gradient_is_written_and_nothing_beyond_the_logits_read(name, dtype):
    weights = [a.item() for a in LOSSES[name] if isinstance(a, torch.Tensor)]
    for classes in range(2, 40):
        logits, target = case((3, 2, classes), dtype)
        _, expected = native(name, logits, target)
        # Rows 3 apart from each other, and as far from both ends of their memory.
        size = 6 * (classes + 3) + 3
        source, out = torch.full((2, size), math.nan, dtype=dtype)
        rows = source[3:].view(6, classes + 3)[:, :classes]
        rows.copy_(logits.view(6, classes))
        strides = 2 * (classes + 3), classes + 3
        pointer = 3 * out.element_size()
        loss = torch.empty((), dtype=torch.float64)
        getattr(library.load(), name)(
            source.data_ptr() + pointer,
            DTYPE_NAMES[dtype],
            *logits.shape,
            *strides,
            target.data_ptr(),
            "mean",
            loss.data_ptr(),
            out.data_ptr() + pointer,
            *strides,
            1,
            *weights,
        )
        written = out[3:].view(6, classes + 3)
        assert torch.equal(written[:, :classes].reshape(expected.shape), expected), classes
        assert bool(written[:, classes:].isnan().all() and out[:3].isnan().all()), classes


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
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            native(name, bad_logits, bad_target)


# --------------------------------------------------------------------------------------- accuracy


def test_exp_is_within_3e_7_of_float64_down_to_the_smallest_normal_number():
    # Two classes, logits 0 and x, label 0: the gradient at x is e^x / (1 + e^x).
    x = -torch.linspace(0, 87.33, 2_000_001)
    logits = torch.stack([torch.zeros_like(x), x], 1).unsqueeze(1)
    target = torch.zeros(len(x), dtype=torch.int64)
    _, grad = cpu.smooth_ce(logits, target, "sum", True)
    expected = torch.sigmoid(x.double())
    assert float((grad[:, 0, 1].double() / expected - 1).abs().max()) < 3e-7
    assert torch.equal(grad[:, 0, 0], -grad[:, 0, 1])


def test_log_is_within_1_2e_7_of_float64_from_1_to_all_the_classes():
    x = -torch.linspace(0, 20, 1_000_001)
    logits = torch.stack([torch.zeros_like(x), x], 1).unsqueeze(1)
    target = torch.zeros(len(x), dtype=torch.int64)
    value, _ = cpu.smooth_ce(logits, target, "none", False)
    expected = torch.log1p(x.double().exp())
    assert float((value.double() - expected).abs().max()) < 1.2e-7
    for classes in (3, 17, 1000, 65_537):
        value, _ = cpu.smooth_ce(torch.zeros(1, 1, classes), target[:1], "sum", False)
        assert float(value) == pytest.approx(math.log(classes), rel=1.2e-7)


def test_a_confident_image_keeps_the_digits_of_its_gradient():
    # 1 - F^y = 1.4e-11, which 1 - 1/(1 + e) in float32 is not.
    logits = torch.tensor([[[25.0, 0.0], [25.0, 0.0]]])
    for name in ("smooth_ce", "macer_loss"):
        _, grad = native(name, logits, torch.tensor([0]))
        assert float(grad[0, 0, 0]) == pytest.approx(-math.exp(-25) / 2, rel=1e-6), name
    _, grad = cpu.consistency_loss(
        logits, torch.tensor([0]), scalar(0.0), scalar(0.0), "mean", True
    )
    assert float(grad[0, 0, 0]) == pytest.approx(-math.exp(-25) / 2, rel=1e-6)
