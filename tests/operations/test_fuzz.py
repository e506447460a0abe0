"""Any input through the public functions: the C++ core against the reference.

Shapes, strides, dtypes, values and the instruction set are drawn; each call runs on both backends
and, for shapes and strides only, on meta tensors, and must give the same value or the same refusal.
Tensors are views into larger storages whose other elements nothing may read or change.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from drawn import (
    BACKENDS,
    CLASSES,
    DTYPES,
    NUMBERS,
    SEEDS,
    SHAPES,
    Drawn,
    Refusal,
    assert_alike,
    assert_same_bits,
    draw_instruction_set,
    floats,
    fuzz,
    integers,
    laid_out,
    run,
    tensors_of,
)

import drf_fast
from drf_fast.backends.native import library
from drf_fast.balls import FORMS

pytestmark = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "the C++ core is available"
)


@pytest.fixture(autouse=True)
def instruction_sets() -> Iterator[None]:
    """Each test draws the one that it runs on."""
    yield
    library.load().use_isa(os.environ.get("DRF_FAST_ISA", ""))


# ------------------------------------------------------------------------------------------ noise


@pytest.mark.slow
@fuzz(250)
@hypothesis.given(data=st.data())
def test_noisy_repeat(data: Any) -> None:
    draw_instruction_set(data)
    shape = data.draw(SHAPES)
    x = data.draw(floats(shape, data.draw(st.sampled_from(DTYPES))))
    m = data.draw(st.integers(1, max(1, min(9, 400_000 // math.prod(shape)))))
    sigma = data.draw(st.one_of(NUMBERS, st.sampled_from([1e-320, 1e300])))
    ids = data.draw(integers(shape[:1], 0, 2**32 - 1))
    offset = data.draw(st.one_of(st.integers(0, 9), st.integers(2**32 - 2 * m, 2**32)))
    options: dict[str, Any] = {
        "seed": data.draw(SEEDS),
        "sample_offset": data.draw(st.sampled_from([offset, torch.tensor(offset)])),
        "stream": data.draw(st.sampled_from(["train", "selection", "estimation", "prediction"])),
    }
    grad = data.draw(floats((shape[0] * m, *shape[1:]), x.view.dtype))

    def call(images: torch.Tensor, image_ids: torch.Tensor, grad: torch.Tensor) -> Any:
        torch.manual_seed(7)  # governs seed=None
        images = images.detach().requires_grad_()
        noisy = drf_fast.noisy_repeat(images, sigma, m, image_ids=image_ids, **options)
        return noisy.detach(), *torch.autograd.grad(noisy, images, grad)

    drawn = (x, ids, grad)
    got, expected = (run(name, lambda: call(*tensors_of(*drawn))) for name in BACKENDS)
    assert_alike(got, expected)
    if not isinstance(got, Refusal):
        assert_alike(got, run("native", lambda: call(*(each.on_meta() for each in drawn))))
        assert_same_bits(got[0], expected[0])
        assert_sums_of_copies(got[1], expected[1], grad.view)
    for each in drawn:
        each.assert_untouched()


@pytest.mark.slow
@fuzz(120)
@hypothesis.given(data=st.data())
def test_noisy_levels(data: Any) -> None:
    draw_instruction_set(data)
    shape = data.draw(SHAPES)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    u = data.draw(laid_out(values, poison=77))
    m = data.draw(st.integers(1, max(1, min(9, 400_000 // math.prod(shape)))))
    sigma = data.draw(st.sampled_from([0.5, 0.12, 1e-3, 1e-30, 2.0, 16.5, 0.0]))
    ids = data.draw(integers(shape[:1], 0, 2**32 - 1))
    options: dict[str, Any] = {
        "seed": data.draw(SEEDS),
        "sample_offset": data.draw(st.integers(2**32 - 2 * m, 2**32)),
        "stream": data.draw(st.sampled_from(["train", "selection", "estimation", "prediction"])),
        "dtype": data.draw(st.sampled_from(DTYPES)),
    }

    def call(images: torch.Tensor, image_ids: torch.Tensor) -> Any:
        torch.manual_seed(7)  # governs seed=None
        return drf_fast.noisy_levels(images, sigma, m, image_ids=image_ids, **options)

    drawn = (u, ids)
    got, expected = (run(name, lambda: call(*tensors_of(*drawn))) for name in BACKENDS)
    assert_alike(got, expected)
    if not isinstance(got, Refusal):
        assert_alike(got, run("native", lambda: call(*(each.on_meta() for each in drawn))))
        assert_same_bits(got, expected)
    for each in drawn:
        each.assert_untouched()


def assert_sums_of_copies(got: torch.Tensor, expected: torch.Tensor, rows: torch.Tensor) -> None:
    """Equal up to the order of the additions, and where none of them overflows."""
    m = rows.shape[0] // got.shape[0]
    size = rows.double().abs().reshape(got.shape[0], m, *got.shape[1:]).sum(1)
    arithmetic = torch.float64 if got.dtype == torch.float64 else torch.float32
    tame = size < torch.finfo(got.dtype).max
    eps = 2 * torch.finfo(got.dtype).eps + m * torch.finfo(arithmetic).eps
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    error = (got.double() - expected.double()).abs()
    assert bool((error <= eps * size + tiny)[tame].all())
    not_finite = ~size.isfinite()
    assert_same_bits(got[not_finite], expected[not_finite])


# ----------------------------------------------------------------------------------------- losses


@st.composite
def loss_options(draw: Any, name: str) -> dict[str, Any]:
    weight = st.one_of(st.just(0.0), st.sampled_from([0.5, 12.0, 1e-6, 1e4]))
    if name == "smooth_ce":
        return {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if name == "consistency_loss":
        reduction = draw(st.sampled_from(["none", "mean", "sum"]))
        return {"lam": draw(weight), "eta": draw(weight), "reduction": reduction}
    positive = st.sampled_from([0.25, 1.0, 1e-2, 30.0])
    return {
        "sigma": draw(positive),
        "lam": draw(weight),
        "gamma": draw(st.sampled_from([1e-3, 2.0, 8.0, 1e3])),  # at 0 rounding decides ties
        "beta": draw(st.sampled_from([1e-3, 1.0, 16.0, 300.0])),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth_ce", "consistency_loss", "macer_loss"])
@fuzz(200)
@hypothesis.given(data=st.data())
def test_losses(name: str, data: Any) -> None:
    draw_instruction_set(data)
    classes = data.draw(CLASSES)
    room = max(1, 150_000 // classes)
    m = data.draw(st.one_of(st.integers(1, min(9, room)), st.integers(1, min(300, room))))
    batch = data.draw(st.integers(1, max(1, min(12, room // m))))
    sample_dim = data.draw(st.sampled_from([0, 1]))
    three = data.draw(st.booleans())
    shape = (batch, m, classes) if sample_dim == 1 else (m, batch, classes)
    dtype = data.draw(st.sampled_from(DTYPES))
    scale = data.draw(st.sampled_from([0.0, 1e-3, 0.2, 3.0, 30.0]))
    logits = data.draw(floats(shape if three else (batch * m, classes), dtype, scale))
    wrong = data.draw(st.integers(0, 19)) == 0
    target = data.draw(integers((batch,), -1 if wrong else 0, classes - (not wrong)))
    options = data.draw(loss_options(name))
    size = (batch,) if options.get("reduction") == "none" else ()
    incoming = torch.linspace(-2.0, 3.0, batch)[: batch if size else 1].reshape(size)
    if data.draw(st.booleans()):
        incoming = torch.ones(size)

    def call(logits: torch.Tensor, target: torch.Tensor) -> Any:
        logits = logits.detach().requires_grad_()
        loss = getattr(drf_fast, name)(
            logits, target, None if three else m, sample_dim=sample_dim, **options
        )
        grad = incoming.to(device=loss.device, dtype=loss.dtype)
        return loss.detach(), *torch.autograd.grad(loss, logits, grad)

    drawn = (logits, target)
    got, expected = (run(name, lambda: call(*tensors_of(*drawn))) for name in BACKENDS)
    assert_alike(got, expected)
    if not isinstance(got, Refusal):
        assert_alike(got, run("native", lambda: call(*(each.on_meta() for each in drawn))))
        truth = run("reference", lambda: call(logits.view.double(), target.view))
        if name == "macer_loss" and has_tie(logits.view, m, sample_dim, options):
            return
        weight = 1 + options.get("lam", 0.0) + options.get("eta", 0.0)
        weight *= float(logits.view.double().nan_to_num(0, 0, 0).abs().max().clamp(min=1.0))
        # The errors of the images add up in their sum; each gradient is one image's.
        images = batch if options.get("reduction") == "sum" else 1
        for a, b, c, terms in zip(got, expected, truth, (images, 1), strict=True):
            assert_as_accurate(a, b, c, weight * terms)
    for each in drawn:
        each.assert_untouched()


def has_tie(logits: torch.Tensor, m: int, sample_dim: int, options: dict[str, Any]) -> bool:
    """Whether rounding decides which class is first, or on which side of gamma the margin is."""
    q = torch.softmax(options["beta"] * logits.double(), dim=-1)
    if logits.dim() == 2:
        q = q.unflatten(0, (-1, m) if sample_dim == 1 else (m, -1))
    p1, p2 = q.mean(sample_dim).topk(2).values.unbind(1)
    xi = torch.special.ndtri(p1) - torch.special.ndtri(p2)
    return bool(((p1 - p2 < 1e-13 * p1) | ((xi - options["gamma"]).abs() < 1e-6)).any())


def assert_as_accurate(
    got: torch.Tensor, expected: torch.Tensor, truth: torch.Tensor, weight: float
) -> None:
    """As near to the float64 reference as rounding allows, or as the reference in this dtype is.

    ``weight`` multiplies terms that may be small differences of large ones.
    """
    exact = expected.dtype == torch.float64
    rounded = truth.to(got.dtype)
    true_infinity = (got == rounded) | (got.isnan() & rounded.isnan())
    overflow = ~expected.isfinite()  # which NaN or infinity float32 ends in is left open
    got_special, rounded_special = ~got.isfinite(), ~rounded.isfinite()
    assert bool((true_infinity | overflow)[got_special | rounded_special].all())
    usual = ~(got_special | rounded_special)
    if not bool(usual.any()):
        return
    eps = 1e-11 if exact else 2e-5 + torch.finfo(got.dtype).eps
    unit = (1e-15 if exact else 1e-6) * weight
    got, expected, truth = (t[usual].double() for t in (got, expected, truth))
    slack = 4 * (expected - truth).abs().nan_to_num(0.0, 0.0, 0.0).max()
    tolerance = eps * truth.abs().max() + slack + unit
    assert float((got - truth).abs().max()) <= float(tolerance)


# -------------------------------------------------------------------------------------- adversary


@pytest.mark.slow
@fuzz(250)
@hypothesis.given(data=st.data())
def test_adversary_step(data: Any) -> None:
    draw_instruction_set(data)
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from(DTYPES))
    m = data.draw(st.integers(1, max(1, min(6, 300_000 // math.prod(shape)))))
    x = data.draw(floats(shape, dtype, 0.5))
    x_adv = data.draw(st.one_of(st.just(x), floats(shape, dtype, 0.5)))
    grad = data.draw(floats((shape[0] * m, *shape[1:]), dtype, data.draw(NUMBERS)))
    ids = data.draw(integers(shape[:1], 0, 2**32 - 1))
    epsilon = data.draw(st.sampled_from([0.5, 1e-3, 1e30]))
    form = data.draw(st.sampled_from([None, "hard", *FORMS]))
    ball: Any = None if form is None else drf_fast.HardBall(epsilon)
    if isinstance(form, str) and form != "hard":
        lam = data.draw(st.sampled_from([0.0, 0.3, 1.0, 7.0]))
        tau = data.draw(st.sampled_from([None, 0.1, 30.0])) if form == "udr" else None
        ball = drf_fast.SoftBall(epsilon, lambda0=lam, form=form, tau=tau)
    options: dict[str, Any] = {
        "step_size": data.draw(st.sampled_from([0.0, 0.25, 1e-6, 30.0])),
        "ball": ball,
        "grad_norm": data.draw(st.sampled_from(["image", "batch", "none"])),
        "clamp": data.draw(st.sampled_from([(0, 1), (-0.5, 0.25), None])),
        "sigma": data.draw(NUMBERS),
        "seed": data.draw(st.integers(-(2**63), 2**64 - 1)),
    }
    drawn = (grad, x, x_adv, ids)

    def call(grad: torch.Tensor, x: torch.Tensor, x_adv: torch.Tensor, ids: torch.Tensor) -> Any:
        return drf_fast.adversary_step(grad, x, x_adv, image_ids=ids, **options)

    got, expected = (run(name, lambda: call(*tensors_of(*drawn))) for name in BACKENDS)
    assert_alike(got, expected, run("native", lambda: call(*(each.on_meta() for each in drawn))))
    for each in drawn:
        each.assert_untouched()
    moved, noisy, distance = got
    with drf_fast.use_backend("reference"):
        noise = {"seed": options["seed"], "image_ids": ids.view}
        again = drf_fast.noisy_repeat(moved, options["sigma"], m, **noise)
    assert_same_bits(noisy, again)
    tolerance = step_tolerance(grad.view, x.view, x_adv.view, options)
    assert_images_near(moved, expected[0], tolerance)
    true = (moved.double() - x.view.double()).flatten(1).norm(dim=1)
    close = torch.isclose(distance.double(), true, rtol=1e-6, atol=1e-30, equal_nan=True)
    assert bool((close | ~(true < 1e38)).all())


def step_tolerance(grad: Any, x: Any, x_adv: Any, options: dict[str, Any]) -> torch.Tensor:
    """How far (L2, per image) rounding may move the result: no ball and no box lengthens a gap."""
    batch = x.shape[0]
    eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    copies = grad.double().reshape(batch, -1, *x.shape[1:])
    m = copies.shape[1]
    total, size = (t.flatten(1).norm(dim=1) for t in (copies.sum(1), copies.abs().sum(1)))
    step = options["step_size"]
    divisor = {"image": total, "batch": total.mean(), "none": torch.ones(())}[options["grad_norm"]]
    error = {"image": size, "batch": size.mean(), "none": torch.zeros(())}[options["grad_norm"]]
    length = torch.where(divisor > 0, step * total / divisor, 0.0)
    uncertain = step * m * eps * (size / divisor + length / step * error / divisor if step else 0)
    images = x.double().flatten(1).norm(dim=1) + x_adv.double().flatten(1).norm(dim=1)
    return uncertain + (8 * eps + torch.finfo(x.dtype).eps) * (images + length + 1e-30)


def assert_images_near(got: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor) -> None:
    assert torch.equal(got.isnan(), expected.isnan())
    special = ~(got.isfinite() & expected.isfinite())
    assert torch.equal(got[special].nan_to_num(0.0), expected[special].nan_to_num(0.0))
    gap = (got.double() - expected.double()).masked_fill(special, 0.0).flatten(1).norm(dim=1)
    assert bool(((gap <= tolerance) | tolerance.isnan() | tolerance.isinf()).all())


# ------------------------------------------------------------------------------- votes and bounds


@fuzz(150)
@hypothesis.given(data=st.data())
@pytest.mark.slow
def test_vote(data: Any) -> None:
    draw_instruction_set(data)
    classes = data.draw(CLASSES)
    images = data.draw(st.integers(1, max(1, min(9, 200_000 // classes))))
    each = data.draw(st.integers(0, max(1, min(40, 200_000 // classes // images))))
    dtype = data.draw(st.sampled_from(DTYPES))
    scale = data.draw(st.sampled_from([0.0, 0.01, 3.0]))  # ties at 0, in halves also at 0.01
    logits = data.draw(floats((images * each, classes), dtype, scale))
    start = torch.arange(images * classes).reshape(images, classes) * 2**40
    results = []
    for name in BACKENDS:
        guarded = torch.full((images * classes + 4,), -7)
        counts = guarded[2:-2].view(images, classes).copy_(start)
        assert run(name, lambda c=counts: drf_fast.vote(logits.view, c)) is counts
        assert guarded[:2].tolist() == guarded[-2:].tolist() == [-7, -7]
        results.append(counts)
    assert torch.equal(*results)
    assert int((results[0] - start).sum()) == int((~logits.view.isnan().any(1)).sum())
    logits.assert_untouched()


@fuzz(150)
@hypothesis.given(data=st.data())
@pytest.mark.slow
def test_bounds(data: Any) -> None:
    draw_instruction_set(data)
    shape = data.draw(st.lists(st.integers(0, 6), max_size=3).map(tuple))
    most = data.draw(st.sampled_from([1, 10, 10**5, 2**53, 2**53 + 1]))
    low = data.draw(st.sampled_from([1, 1, 1, 0]))
    trials = data.draw(integers(shape, low, most)) if shape else data.draw(st.integers(low, most))
    successes = data.draw(integers(shape, -1 if most == 10 else 0, most)) if shape else most // 2
    alpha = data.draw(
        st.one_of(
            st.sampled_from([1e-3, 0.5, 5e-324, 1e-300, 1 - 2**-53, 0.999]),
            st.floats(0, 1, exclude_min=True, exclude_max=True),
        )
    )
    sigma = data.draw(NUMBERS)
    k, n = (each.view if isinstance(each, Drawn) else each for each in (successes, trials))
    if data.draw(st.booleans()) and isinstance(n, torch.Tensor) and isinstance(k, torch.Tensor):
        k = torch.minimum(k, n)
    for call in (
        lambda: drf_fast.clopper_pearson_lower(k, n, alpha),
        lambda: drf_fast.certified_radius(k, n, sigma=sigma, alpha=alpha),
    ):
        got, expected = (run(name, call) for name in BACKENDS)
        if isinstance(got, Refusal) or isinstance(expected, Refusal):
            assert got[0] is expected[0] is ValueError
            continue
        assert_alike(got, expected)
        assert bool(((got - expected).abs() <= 1e-11 * expected.abs() + 1e-300).all())
    for each in (successes, trials):
        if isinstance(each, Drawn):
            each.assert_untouched()
