"""Arguments of the three losses on their kernels, and tolerances of their results.

u stands for 2^-24, half the distance from 1 to the next float32 (2^-53 of float64): the largest
relative error of one rounding.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import like_gpu
import on_gpu
import on_ptx
import pytest
import torch
from values import same_bits, scalar

from drf_fast.backends.reference import operations as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Whether this session computes as hardware does: approximate functions, sums in layout order.
HARDWARE = like_gpu.CHOSEN or on_gpu.CHOSEN or on_ptx.CHOSEN


# Name, and the arguments between target and need_grad.
LOSSES: dict[str, tuple[Any, ...]] = {
    "smooth_ce": ("mean",),
    "consistency_loss": (scalar(10.0), scalar(0.5), "mean"),
    "macer_loss": (scalar(0.5), scalar(12.0), scalar(8.0), scalar(16.0)),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, scale: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Most labels are the predicted class, so that the margin term of macer_loss is active."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    target = torch.softmax(16 * logits, 2).mean(1).argmax(1)
    target[::3] = torch.randint(shape[2], target[::3].shape, generator=generator)
    return logits.to(dtype), target


def in_other_layouts(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same (B, m, K) numbers in other memory layouts, the gaps filled with NaN."""
    batch, samples, classes = logits.shape
    room = torch.full((2 * batch + 1, 3 * samples - 2, classes + 3), math.nan, dtype=logits.dtype)
    return {
        "gaps between rows": room[1::2, ::3, 1:-2].copy_(logits),
        "sample-major": logits.transpose(0, 1).contiguous().transpose(0, 1),
        "classes apart": logits.repeat_interleave(2, 2)[..., ::2],
        "classes outermost": logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }


def call(name: str, logits: torch.Tensor, target: torch.Tensor, *arguments: Any) -> Any:
    """The kernel with all its arguments: those of the loss, and need_grad."""
    module = importlib.import_module(f"drf_fast.kernels.{name}")
    return getattr(module, name)(logits, target, *arguments)


def kernel(name: str, logits: torch.Tensor, target: torch.Tensor, need_grad: bool = True) -> Any:
    return call(name, logits, target, *LOSSES[name], need_grad)


def reduced(name: str, reduction: str) -> tuple[Any, ...]:
    """The arguments of ``LOSSES`` with another reduction."""
    return tuple(reduction if argument == "mean" else argument for argument in LOSSES[name])


def truth(name: str, logits: torch.Tensor, target: torch.Tensor) -> Any:
    return getattr(reference, name)(logits.double(), target, *LOSSES[name], True)


def assert_true(name: str, logits: torch.Tensor, target: torch.Tensor, got: Any) -> None:
    """Value and gradient within 1e-6 of the float64 reference, and the rounding of the output.

    1e-6 of the largest number, 16.8 u, is required of a kernel where no |log F| is above some 8.
    The steps of its computation, with the largest error of each: e^(z - peak), 2 u and
    u |z - peak|; the sum S of a row, u for each addition that a term passes through, 5 at 10
    classes and 36 at 1000; log S, one unit in the last place, 4 u at 10 classes and 8 u at 1000;
    log F^y, half of one; the quotient w_i / (W S) and two products, u each. With equal signs all
    of these would add up to 50 u at 10 classes. As independent numbers, uniform in their ranges,
    they have a standard deviation of 3 u at 10 classes and 5 u at 1000, and 16.8 u is three to five
    of these; a larger error shows that digits were lost. The error of lam times logarithms in
    ``consistency_loss`` is larger and is added with its worst case. float64: 1e-12 is 9,000 of its
    u, as MACER's quantiles, fitted to 2e-14, are multiplied by 1 / density.
    """
    (value, grad), (true_value, true_grad) = got, truth(name, logits, target)
    exact = logits.dtype == torch.float64
    assert value.dtype == (torch.float64 if exact else torch.float32)
    assert grad.dtype == logits.dtype and grad.shape == logits.shape
    tolerance = 1e-12 if exact else 1e-6
    of_logarithms = error_of_logarithms(name, logits)
    error = abs(float(value) - float(true_value))
    assert error <= tolerance * abs(float(true_value)) + of_logarithms
    info = torch.finfo(logits.dtype)
    # Half a unit in the last place, of normal and of subnormal numbers; 1.001, as the rounded value
    # itself has the error of the tolerance.
    rounding = 0.5 * info.eps * true_grad.abs() + 0.5 * info.smallest_normal * info.eps
    error = (grad.double() - true_grad).abs()
    # The slope and its mean over the classes, times F_i / (B m).
    slope = 2 * of_logarithms * logits.double().softmax(2) / math.prod(logits.shape[:2])
    allowed = 1.001 * rounding + tolerance * true_grad.abs().max() + slope
    assert bool((error <= allowed).all())


def error_of_logarithms(name: str, logits: torch.Tensor) -> float:
    """``error_of_slopes`` for lam of ``LOSSES``; 0 for the other losses."""
    return error_of_slopes(logits, float(LOSSES[name][0])) if name == "consistency_loss" else 0.0


def error_of_slopes(logits: torch.Tensor, lam: float, eta: float = 0.0) -> float:
    """The largest error on hardware of lam gap - eta log Fbar in consistency_loss.

    With L the largest |log F|: log Fbar inherits the relative error of Fbar (at most 8 u:
    exponential, share, product, mean), the mean of log F that of the row's sum (at most 8 u), and
    each of the two logarithms and their difference is off by up to 2 u of its value.
    """
    if not HARDWARE:
        return 0.0
    unit = 2.0**-53 if logits.dtype == torch.float64 else 2.0**-24
    largest = -float(logits.double().log_softmax(2).min())
    return (lam * (16 + 4 * largest) + eta * (8 + 2 * largest)) * unit


def same_but_for_the_order_of_sums(
    name: str, logits: torch.Tensor, got: Any, expected: Any
) -> bool:
    """Equal bits; on hardware, whose sums follow the layout, within 8 u of the largest number.

    Every number is a factor of its row times a factor of its class; the former inherits the
    relative error of the row's sum, at most 3 u for each of the two orders, and is rounded twice.
    The gap of consistency_loss has an error of at most ``error_of_logarithms`` in both. The slopes
    of macer_loss consist of quantiles and densities: 8 u of a tail are 8 u of 1 over the density
    there, which is multiplied with a sum over samples, 32 u together. A half precision may then
    round to its neighbour.
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
