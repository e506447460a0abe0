"""adversary_step: everything between two passes through the network.

One program processes an image whose pixels fit in registers, from the gradient to the next noisy
batch: one launch, each tensor read and written once. For a larger image one program makes three
passes and keeps intermediate results in global memory (in cache, for the images in flight); its
noise is a second launch, of noisy_repeat. ``grad_norm="batch"`` needs the norms of all images
first, in one more launch.

Lengths are sums in float64 in a fixed order, so results are the same at every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from drf_fast.kernels.ball import ascended, ascent_scale, shortened, shrinkage, square
from drf_fast.kernels.dtypes import narrow, widen
from drf_fast.kernels.images import check_size, layout_of
from drf_fast.kernels.launch import launch
from drf_fast.kernels.noisy_repeat import (
    groups_of_thread,
    noisy_repeat,
    sum_copies,
    write_noisy_rows,
)
from drf_fast.kernels.scalars import on_device
from drf_fast.runtime.raw_arguments import check_step
from drf_fast.runtime.tensors import arithmetic_dtype, is_channels_last

# Most pixels of an image that is kept in registers, and bytes of it in the registers of a thread.
_IN_REGISTERS = 4096
_BYTES_OF_THREAD = 64
# For larger images: pixels of a tile (four a thread), warps and register limit of a program. With
# this many loads in flight, some sixty programs saturate the memory bandwidth of an H100.
_TILE, _TILE_WARPS, _TILE_REGISTERS = 4096, 32, 64
# Warps and register limit of a program that only sums copies: see ``launch.Launch``.
_SUM_WARPS, _SUM_REGISTERS = 8, 128
# Least width of a noise tile, in counter groups: rows are then written in full 128-byte lines.
_FEWEST_GROUPS = 64


@triton.jit
def _mean(values, count):
    """Mean of ``count`` float64 numbers in memory."""
    lanes = tl.arange(0, 256)
    total = tl.zeros([256], tl.float64)
    for first in range(0, count, 256):
        total += tl.load(values + first + lanes, mask=first + lanes < count, other=0.0)
    return tl.sum(total) / count


@triton.jit
def sum_copies_kernel(grad, total, norms, copies, pixels, TILE: tl.constexpr):
    """Each program sums the copies of one image and computes the norm of the sum."""
    image = tl.program_id(0).to(tl.int64)
    begin = image * pixels
    lane = tl.arange(0, TILE)
    squares = tl.zeros([TILE], tl.float64)
    for first in range(0, pixels, TILE):
        inside, at = lane < pixels - first, first + lane.to(tl.int64)
        value = sum_copies(grad + begin * copies, at, inside, copies, pixels, 4)
        squares += square(value)
        tl.store(total + begin + at, value, mask=inside)
    tl.store(norms + image, tl.sqrt(tl.sum(squares)))


@triton.jit
def step_in_registers_kernel(
    grad,
    x,
    x_adv,
    out,
    noisy,
    distance,
    norms,
    step_size,
    epsilon,
    lam,
    sigma,
    key,
    image_ids,
    images,
    copies,
    num_samples,
    pixels,
    octets,
    area,
    channels,
    BALL: tl.constexpr,
    GRAD_NORM: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Each program processes one image; PIXELS is a power of 2 not below its number of pixels."""
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, PIXELS)
    inside, at = lane < pixels, lane.to(tl.int64)
    step = tl.load(step_size)
    total = sum_copies(grad + image * copies * pixels, at, inside, copies, pixels, 2)
    if GRAD_NORM == "image":
        scale = ascent_scale(step, tl.sqrt(tl.sum(square(total))))
    elif GRAD_NORM == "batch":
        scale = ascent_scale(step, _mean(norms, images))
    else:
        scale = step
    begin = image * pixels
    x_adv_value = widen(tl.load(x_adv + begin + at, mask=inside, other=0.0))
    x_value = widen(tl.load(x + begin + at, mask=inside, other=0.0))
    moved = ascended(total, x_adv_value, scale, BALL, CLAMP, LOW, HIGH)
    factor = step
    if BALL != "none":
        displacement = tl.where(inside, moved - x_value, 0.0)
        length = tl.sqrt(tl.sum(square(displacement)))
        factor = shrinkage(length, step, tl.load(epsilon), tl.load(lam), BALL)
    moved = shortened(moved, x_value, factor, BALL, CLAMP, LOW, HIGH)
    result = narrow(moved, out.dtype.element_ty)
    tl.store(out + begin + at, result, mask=inside)
    displacement = tl.where(inside, widen(result) - x_value, 0.0)
    length = tl.sqrt(tl.sum(square(displacement)))
    tl.store(distance + image, length.to(distance.dtype.element_ty))
    # The noise reads ``out`` in another layout: threads read what others have stored.
    tl.debug_barrier()
    for first_group in range(0, octets * 8, GROUPS):
        write_noisy_rows(
            out + begin,
            noisy + image * num_samples * pixels,
            sigma,
            key,
            tl.load(image_ids + image),
            0,
            first_group,
            num_samples,
            pixels,
            octets,
            area,
            channels,
            0,
            CHANNELS_LAST,
            ROWS,
            GROUPS,
        )


@triton.jit
def step_in_passes_kernel(
    grad,
    x,
    x_adv,
    work,
    out,
    distance,
    norms,
    step_size,
    epsilon,
    lam,
    images,
    copies,
    pixels,
    BALL: tl.constexpr,
    GRAD_NORM: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Each program processes an image of any size, without noise; ``work``: its summed gradient."""
    image = tl.program_id(0).to(tl.int64)
    begin = image * pixels
    lane = tl.arange(0, TILE)
    step = tl.load(step_size)
    if GRAD_NORM == "batch":
        scale = ascent_scale(step, _mean(norms, images))  # work: from sum_copies_kernel
    else:
        squares = tl.zeros([TILE], tl.float64)
        for first in range(0, pixels, TILE):
            inside, at = lane < pixels - first, first + lane.to(tl.int64)
            total = sum_copies(grad + begin * copies, at, inside, copies, pixels, 4)
            squares += square(total)
            tl.store(work + begin + at, total, mask=inside)
        scale = ascent_scale(step, tl.sqrt(tl.sum(squares))) if GRAD_NORM == "image" else step
        tl.debug_barrier()  # threads may read what others have stored
    squares = tl.zeros([TILE], tl.float64)
    for first in range(0, pixels, TILE):
        inside, at = lane < pixels - first, first + lane.to(tl.int64)
        total = tl.load(work + begin + at, mask=inside, other=0.0)
        x_adv_value = widen(tl.load(x_adv + begin + at, mask=inside, other=0.0))
        x_value = widen(tl.load(x + begin + at, mask=inside, other=0.0))
        moved = ascended(total, x_adv_value, scale, BALL, CLAMP, LOW, HIGH)
        squares += tl.where(inside, square(moved - x_value), 0.0)
    length = tl.sqrt(tl.sum(squares))
    factor = step
    if BALL != "none":
        factor = shrinkage(length, step, tl.load(epsilon), tl.load(lam), BALL)
    squares = tl.zeros([TILE], tl.float64)
    for first in range(0, pixels, TILE):
        inside, at = lane < pixels - first, first + lane.to(tl.int64)
        # Recomputed from the sums: storing the result of the ascent would cost more.
        total = tl.load(work + begin + at, mask=inside, other=0.0)
        x_adv_value = widen(tl.load(x_adv + begin + at, mask=inside, other=0.0))
        x_value = widen(tl.load(x + begin + at, mask=inside, other=0.0))
        moved = ascended(total, x_adv_value, scale, BALL, CLAMP, LOW, HIGH)
        moved = shortened(moved, x_value, factor, BALL, CLAMP, LOW, HIGH)
        result = narrow(moved, out.dtype.element_ty)
        tl.store(out + begin + at, result, mask=inside)
        squares += tl.where(inside, square(widen(result) - x_value), 0.0)
    length = tl.sqrt(tl.sum(squares))
    tl.store(distance + image, length.to(distance.dtype.element_ty))


def _noise_tile(lanes: int, octets: int, num_samples: int) -> tuple[int, int]:
    """Rows and counter groups, powers of 2 with product ``lanes``, that mask the fewest lanes."""

    def turns(groups: int) -> int:
        return triton.cdiv(8 * octets, groups) * triton.cdiv(num_samples, lanes // groups)

    widths = (lanes >> shift for shift in range(8))
    groups = min((width for width in widths if width >= _FEWEST_GROUPS), key=turns)
    return lanes // groups, groups


def adversary_step(
    grad: torch.Tensor,
    x: torch.Tensor,
    x_adv: torch.Tensor,
    step_size: torch.Tensor,
    epsilon: torch.Tensor,
    lam: torch.Tensor,
    sigma: torch.Tensor,
    key: torch.Tensor,
    image_ids: torch.Tensor,
    ball: str,
    grad_norm: str,
    clamp: Sequence[float] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The new adversarial images (B, ...), their noisy copies (B*m, ...), distances to x (B,)."""
    check_step(grad, x, x_adv, image_ids)
    check_size("adversary_step", x)
    batch = x.shape[0]
    out = torch.empty_like(x)
    last = is_channels_last(out)
    numbers = on_device(x.device, step_size, epsilon, lam, sigma, key)
    if not last and not out.is_contiguous():  # dense in a permuted order, which out must keep
        moved, noisy, distance = adversary_step(
            grad, x.contiguous(), x_adv, *numbers, image_ids, ball, grad_norm, clamp
        )
        return out.copy_(moved), noisy, distance
    form = torch.channels_last if last else torch.contiguous_format
    grad, x, x_adv = (t.contiguous(memory_format=form) for t in (grad, x, x_adv))
    image_ids = image_ids.contiguous()
    layout = layout_of(x)
    arithmetic = arithmetic_dtype(x.dtype)
    distance = torch.empty(batch, dtype=arithmetic, device=x.device)
    low, high = (0.0, 0.0) if clamp is None else map(float, clamp)
    constants = {
        "BALL": ball,
        "GRAD_NORM": grad_norm,
        "CLAMP": clamp is not None,
        "LOW": low,
        "HIGH": high,
    }
    num_samples = grad.shape[0] // batch
    in_registers = layout.pixels <= _IN_REGISTERS
    work = norms = distance  # placeholders: not read unless replaced below
    if grad_norm == "batch" or not in_registers:
        work = torch.empty((batch, layout.pixels), dtype=arithmetic, device=x.device)
    if grad_norm == "batch":
        norms = torch.empty(batch, dtype=torch.float64, device=x.device)
        launch(
            sum_copies_kernel,
            batch,
            grad,
            work,
            norms,
            num_samples,
            layout.pixels,
            num_warps=_SUM_WARPS,
            registers=_SUM_REGISTERS,
            TILE=32 * _SUM_WARPS * max(4, 16 // x.dtype.itemsize),
        )
    if not in_registers:
        launch(
            step_in_passes_kernel,
            batch,
            grad,
            x,
            x_adv,
            work,
            out,
            distance,
            norms,
            *numbers[:3],
            batch,
            num_samples,
            layout.pixels,
            num_warps=_TILE_WARPS,
            registers=_TILE_REGISTERS,
            TILE=_TILE,
            **constants,
        )
        noisy = noisy_repeat(out, *numbers[3:], image_ids, None, num_samples, "train")
        return out, noisy, distance
    noisy = torch.empty(grad.shape, dtype=x.dtype, device=x.device, memory_format=form)
    size = triton.next_power_of_2(layout.pixels)
    warps = max(4, size * arithmetic.itemsize // (32 * _BYTES_OF_THREAD))
    lanes = 32 * warps * groups_of_thread(x.dtype, last)
    rows, groups = _noise_tile(lanes, layout.octets, num_samples)
    summed = grad_norm == "batch"
    launch(
        step_in_registers_kernel,
        batch,
        work if summed else grad,
        x,
        x_adv,
        out,
        noisy,
        distance,
        norms,
        *numbers,
        image_ids,
        batch,
        1 if summed else num_samples,
        num_samples,
        *layout,
        num_warps=warps,
        CHANNELS_LAST=last,
        PIXELS=size,
        ROWS=rows,
        GROUPS=groups,
        **constants,
    )
    return out, noisy, distance
