"""noisy_repeat: x + sigma * normal for m copies of each image, and the sum that is its backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drf_fast.kernels.dtypes import narrow, widen
from drf_fast.kernels.images import check, dense, layout_of
from drf_fast.kernels.launch import launch
from drf_fast.kernels.normals import normals
from drf_fast.kernels.scalars import on_device
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.raw_arguments import check_ids
from drf_fast.runtime.tensors import empty_rows, is_channels_last

# Counter groups of a program. The usual images, 3*2^k on a side or 28x28, leave few lanes masked.
GROUPS = 256
# Programs that fill an H100: five for each of its 132 multiprocessors. With fewer blocks than these
# the copies of an image are split over several programs.
ENOUGH_PROGRAMS = 660
# Pixels that one program sums over the copies.
SUM_BLOCK = 1024


@triton.jit
def memory_offset(pixel, area, channels, CHANNELS_LAST: tl.constexpr):
    """The offset in memory of pixel p of an image, counted in NCHW order."""
    offset = pixel
    if CHANNELS_LAST:
        offset = pixel % area * channels + pixel // area
    return offset


@triton.jit
def like_loaded(index, loaded):
    """``index``, int32, in the layout (distribution over threads) of the loaded floating values.

    Triton chooses a layout for wide accesses for loaded values, but one value per thread for an
    arange; the noise, computed from an arange, would then be converted through shared memory. So
    the arange is made to depend on the loaded values, by adding a zero that the compiler recognises
    only after it has chosen layouts: two shifts that together shift every bit out.
    """
    dtype: tl.constexpr = loaded.dtype
    if dtype == tl.float64:
        zero = (loaded.to(tl.uint64, bitcast=True) >> 32) >> 32
    else:
        zero = (loaded.to(tl.uint32, bitcast=True) >> 16) >> 16
    return index + zero.to(tl.int32)


@triton.jit
def write_noisy_rows(
    image,
    noisy,
    sigma,
    key,
    image_id,
    first_sample,
    first_group,
    rows,
    pixels,
    octets,
    area,
    channels,
    STREAM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Noisy copies of one image, for the pixels of GROUPS counter groups, ROWS copies at a time.

    Word j of group g belongs to pixel j G + g, so a block of groups is four runs of pixels. They
    are read once and stay in registers.

    Args:
        image, noisy: pointers to the image and to the first of its ``rows`` copies.
        first_sample: int64 index of that copy.
    """
    row = tl.arange(0, ROWS)[:, None]
    group = first_group + tl.broadcast_to(tl.arange(0, GROUPS)[None, :], (ROWS, GROUPS))
    groups = octets * 8
    # Masked beyond the last group: those pixels belong to the next of the four runs.
    in0 = (group < groups) & (group < pixels)
    in1 = (group < groups) & (group + groups < pixels)
    in2 = (group < groups) & (group + 2 * groups < pixels)
    in3 = (group < groups) & (group + 3 * groups < pixels)
    at0 = memory_offset(group, area, channels, CHANNELS_LAST)
    at1 = memory_offset(group + groups, area, channels, CHANNELS_LAST)
    at2 = memory_offset(group + 2 * groups, area, channels, CHANNELS_LAST)
    at3 = memory_offset(group + 3 * groups, area, channels, CHANNELS_LAST)
    x0 = widen(tl.load(image + at0, mask=in0))
    x1 = widen(tl.load(image + at1, mask=in1))
    x2 = widen(tl.load(image + at2, mask=in2))
    x3 = widen(tl.load(image + at3, mask=in3))
    scale = tl.load(sigma).to(x0.dtype)
    key_bits = tl.load(key)
    word = like_loaded(group, x0).to(tl.uint32)
    dtype: tl.constexpr = noisy.dtype.element_ty
    for first in range(0, rows, ROWS):
        copy = first + row
        z0, z1, z2, z3 = normals(
            word,
            (first_sample + copy).to(tl.uint32),
            image_id.to(tl.uint32),
            STREAM,
            key_bits,
        )
        target = noisy + copy.to(tl.int64) * pixels
        here = copy < rows
        tl.store(target + at0, narrow(x0 + scale * z0.to(x0.dtype), dtype), mask=in0 & here)
        tl.store(target + at1, narrow(x1 + scale * z1.to(x0.dtype), dtype), mask=in1 & here)
        tl.store(target + at2, narrow(x2 + scale * z2.to(x0.dtype), dtype), mask=in2 & here)
        tl.store(target + at3, narrow(x3 + scale * z3.to(x0.dtype), dtype), mask=in3 & here)


@triton.jit
def noisy_repeat_kernel(
    x,
    out,
    sigma,
    key,
    image_ids,
    sample_offset,
    num_samples,
    samples_each,
    pixels,
    octets,
    area,
    channels,
    OFFSET: tl.constexpr,
    STREAM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Each program makes ``samples_each`` copies of a block of counter groups of one image."""
    blocks = tl.cdiv(octets * 8, GROUPS)
    parts = tl.cdiv(num_samples, samples_each)
    program = tl.program_id(0)
    block = program % blocks
    first = program // blocks % parts * samples_each
    image = (program // blocks // parts).to(tl.int64)
    sample = first.to(tl.int64)
    if OFFSET:
        sample += tl.load(sample_offset)
    write_noisy_rows(
        x + image * pixels,
        out + (image * num_samples + first) * pixels,
        sigma,
        key,
        tl.load(image_ids + image),
        sample,
        block * GROUPS,
        tl.minimum(num_samples - first, samples_each),
        pixels,
        octets,
        area,
        channels,
        STREAM,
        CHANNELS_LAST,
        1,
        GROUPS,
    )


@triton.jit
def sum_copies(rows, at, inside, copies, pixels, AHEAD: tl.constexpr):
    """rows[at] + rows[pixels + at] + ..., row after row, in the dtype of arithmetic.

    AHEAD rows are prefetched.
    """
    wide: tl.constexpr = tl.float64 if rows.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros(at.shape, wide)
    for _ in tl.range(0, copies, loop_unroll_factor=AHEAD):
        total += widen(tl.load(rows + at, mask=inside, other=0.0))
        rows += pixels
    return total


@triton.jit
def noisy_repeat_backward_kernel(grad, out, num_samples, pixels, BLOCK: tl.constexpr):
    """Each program sums the copies of a block of pixels of one image."""
    blocks = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    lane = tl.arange(0, BLOCK)
    # In 64 bits from here on: the compiler then folds the offsets of a thread's lanes into one
    # address, and would otherwise keep an address in registers for each.
    inside, at = lane < pixels - first, first + lane.to(tl.int64)
    total = sum_copies(grad + image * num_samples * pixels, at, inside, num_samples, pixels, 2)
    tl.store(out + image * pixels + at, narrow(total, out.dtype.element_ty), mask=inside)


def groups_of_thread(dtype: torch.dtype, last: bool) -> int:
    """The number of counter groups, of 4 normals each, that a thread computes at a time.

    Each of the four runs is then written in 16-byte stores. In channels_last order, where stores
    are not contiguous, two are enough to hide latency and leave registers for the addresses.
    """
    return 2 if last else 16 // dtype.itemsize


def noisy_repeat(
    x: torch.Tensor,
    sigma: torch.Tensor,
    key: torch.Tensor,
    image_ids: torch.Tensor,
    sample_offset: torch.Tensor | None,
    num_samples: int,
    stream: str,
) -> torch.Tensor:
    """(B, ...) -> (B*m, ...) noisy copies, in the dtype and memory format of x.

    ``sample_offset`` None is 0, without making a tensor.
    """
    check("noisy_repeat", x)
    check_ids("noisy_repeat", image_ids, x)
    batch, x = x.shape[0], dense(x)
    last = is_channels_last(x)
    out = empty_rows(x, batch * num_samples)
    layout = layout_of(x)
    # With few images several programs split the copies of one, and read x again, from the cache.
    blocks = batch * triton.cdiv(layout.octets * 8, GROUPS)
    samples_each = triton.cdiv(num_samples, min(num_samples, triton.cdiv(ENOUGH_PROGRAMS, blocks)))
    offset = key if sample_offset is None else sample_offset
    sigma, key, offset = on_device(x.device, sigma, key, offset)
    launch(
        noisy_repeat_kernel,
        blocks * triton.cdiv(num_samples, samples_each),
        x,
        out,
        sigma,
        key,
        image_ids.contiguous(),
        offset,
        num_samples,
        samples_each,
        *layout,
        num_warps=GROUPS // (32 * groups_of_thread(x.dtype, last)),
        OFFSET=sample_offset is not None,
        STREAM=STREAM_WORDS[stream],
        CHANNELS_LAST=last,
        GROUPS=GROUPS,
    )
    return out


def noisy_repeat_backward(grad: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Sum over the m copies: (B*m, ...) -> (B, ...), in the dtype and memory format of grad."""
    check("noisy_repeat_backward", grad)
    batch = grad.shape[0] // num_samples
    if batch == 0 or batch * num_samples != grad.shape[0]:
        raise ValueError(
            f"noisy_repeat_backward: expected {num_samples} rows an image, got {grad.shape[0]} rows"
        )
    grad = dense(grad)
    out = empty_rows(grad, batch)
    pixels = layout_of(grad).pixels
    launch(
        noisy_repeat_backward_kernel,
        batch * triton.cdiv(pixels, SUM_BLOCK),
        grad,
        out,
        num_samples,
        pixels,
        num_warps=4,
        BLOCK=SUM_BLOCK,
    )
    return out
