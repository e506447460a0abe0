"""Calling the kernels of the losses: checks, tiles, outputs, launches, reduction."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from drf_fast.kernels.launch import KernelTooLargeError, launch
from drf_fast.kernels.rows import reduce_losses
from drf_fast.kernels.scalars import on_device
from drf_fast.runtime.raw_arguments import check_loss, refuse_bad_images
from drf_fast.runtime.tensors import arithmetic_dtype
from drf_fast.runtime.values import debugging

# Bytes that one load instruction of a warp reads: 16 a thread.
_ROW_OF_A_WARP = 512
# Bytes of registers for a warp's part of a tile: long rows; short ones, where a thread holds parts
# of many rows, whose sums and logarithms take registers too; blocks, kept beside the row sums.
_LONG_ROWS, _SHORT_ROWS, _PASSING_ROWS = 4096, 512, 2048
# Most warps. Beyond 8 a thread has at most 128 registers: too few to keep values per class as well.
_ROWS_WARPS, _COLUMNS_WARPS = 16, 8
# Images share a program up to this tile size in bytes, unless that leaves fewer programs than this:
# a GPU has about 130 multiprocessors.
_PACKED, _PROGRAMS = 4096, 256
# Register limit of a thread, in a loop over blocks that sums over samples and keeps one value for
# each logit: see ``launch.Launch``.
_PASSING_REGISTERS = 128
# Most images, and classes: kernels index them in 32 bits, up to a block beyond the last one.
_MOST = 2**31 - 2**16
# Losses of images that are added in one iteration of the reduction.
_SUMMED = 1024


def run_loss(
    kernel: Any,
    logits: torch.Tensor,
    target: torch.Tensor,
    *scalars: torch.Tensor,
    reduction: str,
    need_grad: bool,
    values_per_logit: int,
    sums_over_samples: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient in the strides of ``torch.empty_like(logits)``.

    One launch, and a second one that reduces the losses for "mean" and "sum". (The last program to
    finish could reduce them, but the counter that identifies it must be zero at the start, which
    takes another launch in a captured graph or with two streams.)

    Args:
        kernel: computes losses and gradients.
        scalars: 0-dim float64 tensors that the kernel takes after the gradient.
        values_per_logit: how many values of the arithmetic dtype a kernel holds for each logit.
        sums_over_samples: whether the kernel also sums over the samples at each class. If it does
            not, rows are split into chunks, so that warps are spread over rows before classes.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; with DRF_FAST_DEBUG=1 also labels out
            of range and rows of logits that are not a valid distribution.
        KernelTooLargeError: too many samples of an image.
    """
    _check(kernel.fn.__name__.removesuffix("_kernel"), logits, target)
    batch, samples, classes = logits.shape
    dtype = arithmetic_dtype(logits.dtype)
    losses = torch.empty(batch, dtype=dtype, device=logits.device)
    source = logits if logits.stride(2) == 1 else logits.contiguous()
    grad = torch.empty_like(logits) if need_grad else logits.new_empty(0)
    # The kernel writes contiguous rows.
    copied = need_grad and grad.stride(2) != 1
    out = torch.empty(logits.shape, dtype=grad.dtype, device=grad.device) if copied else grad
    strides = _row_strides(source) + (_row_strides(out) if need_grad else (0, 0))
    # Passed divided by a constexpr common divisor, sizes let the compiler prove aligned accesses.
    align = math.gcd(16, classes, *strides)
    tile = _tile(logits, values_per_logit, sums_over_samples)
    launch(
        kernel,
        triton.cdiv(batch, tile["IMAGES"]),
        source,
        target.contiguous(),
        losses,
        out if need_grad else source,  # any address: nothing is written
        *on_device(logits.device, *scalars),
        batch,
        samples,
        *(size // align for size in (classes, *strides)),
        ALIGN=align,
        MEAN=reduction == "mean",
        NEED_GRAD=need_grad,
        **tile,
    )
    if out is not grad:
        grad.copy_(out)
    return _reduced(losses, reduction), grad


def _row_strides(tensor: torch.Tensor) -> tuple[int, int]:
    """The strides of images and samples; 0 for a dimension of size 1, where it is arbitrary."""
    image, sample = (
        stride if size > 1 else 0
        for size, stride in zip(tensor.shape[:2], tensor.stride()[:2], strict=True)
    )
    return image, sample


def _tile(
    logits: torch.Tensor, values_per_logit: int, sums_over_samples: bool
) -> dict[str, int | None]:
    """The numbers of images, samples and classes in a program's tile: powers of two."""
    batch, samples, classes = logits.shape
    size = arithmetic_dtype(logits.dtype).itemsize * values_per_logit
    rows, width = triton.next_power_of_2(samples), triton.next_power_of_2(classes)
    warp_bytes = _LONG_ROWS if width >= 128 else _SHORT_ROWS * values_per_logit
    blocked = rows * width * size > warp_bytes * (
        _COLUMNS_WARPS if sums_over_samples else _ROWS_WARPS
    )
    if blocked:
        warp_bytes = _PASSING_ROWS
        capacity = warp_bytes * _COLUMNS_WARPS // size
        if samples > capacity:
            raise KernelTooLargeError(
                f"losses: their kernels take at most {capacity} noise samples of an image of "
                f"{logits.dtype}, got {samples}; use fewer, or the backend 'reference'"
            )
        width = capacity // rows
        if values_per_logit == 1 and (sums_over_samples or width < 128):
            # Again a thread holds parts of many rows, whose sums need registers.
            width = max(width // 2, 1)
    images = 1
    while 2 * images * rows * width * size <= _PACKED and 2 * images * _PROGRAMS <= batch:
        images *= 2
    unchunked = sums_over_samples or blocked
    lanes = width if unchunked else min(width, _ROW_OF_A_WARP // logits.element_size())
    warps = _COLUMNS_WARPS if blocked else images * rows * width * size // warp_bytes
    limited = blocked and sums_over_samples and values_per_logit == 1
    return {
        "num_warps": max(warps, 1),
        "registers": _PASSING_REGISTERS if limited else None,
        "CHUNKS": width // lanes,
        "IMAGES": images,
        "SAMPLES": rows,
        "LANES": lanes,
        "RESIDENT": not blocked,
    }


def _reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return losses
    value = losses.new_empty(())
    mean = reduction == "mean"
    launch(reduce_losses, 1, losses, value, losses.shape[0], MEAN=mean, BLOCK=_SUMMED)
    return value


def _check(name: str, logits: torch.Tensor, target: torch.Tensor) -> None:
    check_loss(name, logits, target)
    if max(logits.shape[0], logits.shape[2]) > _MOST:
        raise ValueError(
            f"{name}: expected at most {_MOST} images and as many classes, got logits "
            f"{tuple(logits.shape)}; use a smaller batch"
        )
    if debugging():
        _check_values(logits, target)


def _check_values(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Check values as the reference does; this synchronises."""
    classes = logits.shape[2]
    bad_label = (target < 0) | (target >= classes)
    # amax is NaN where a row holds a NaN, and -inf where it holds only -inf.
    bad_logits = (~logits.amax(2).isfinite()).any(1)
    refuse_bad_images(bad_label, bad_logits, target, classes)
