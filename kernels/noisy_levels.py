"""noisy_levels: float32(u + R)/255 for m copies of each 8-bit image, R Gaussian in whole levels.

``drf_fast/runtime/level_table.py`` defines R and explains the guide; ``csrc/common/levels.h``
is the same look-up in C++. The guide is in global memory: nearly all look-ups are in its highest
few octaves, some 10 KB, which stay in the L1 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drf_fast.kernels.dtypes import narrow
from drf_fast.kernels.images import check_levels, dense, layout_of
from drf_fast.kernels.launch import launch
from drf_fast.kernels.noisy_repeat import (
    ENOUGH_PROGRAMS,
    GROUPS,
    groups_of_thread,
    like_loaded,
    memory_offset,
)
from drf_fast.kernels.normals import philox
from drf_fast.kernels.scalars import on_device
from drf_fast.runtime.level_table import bits_of
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.raw_arguments import check_ids
from drf_fast.runtime.tensors import empty_rows, is_channels_last


@triton.jit
def _level(high, low, guide, BITS: tl.constexpr):
    """R of the word 2^32 high + low, two uint32 blocks; int32."""
    upper = high.to(tl.int32, bitcast=True) >> 31  # all ones where the word's first bit is set
    mask = upper.to(tl.uint32, bitcast=True)
    value = ((high ^ mask).to(tl.int64) << 32) | (low ^ mask).to(tl.int64)
    # The leading BITS + 1 bits, truncated: the bit after them is cleared, so that rounding to
    # float32 cannot carry into them.
    cut = (value & ~(value >> (BITS + 1))).to(tl.float32)
    bucket = (cut.to(tl.int32, bitcast=True) >> (23 - BITS)) - (127 << BITS)
    row = guide + 2 * tl.maximum(bucket, 0)
    counts = tl.load(row + 1)
    beyond = tl.where(value < tl.load(row), counts >> 16, counts & 0xFFFF).to(tl.int32)
    return upper - (beyond ^ upper)  # -beyond, or beyond where upper


@triton.jit
def _store(out, place, u, level, inside):
    pixel = tl.div_rn((u.to(tl.int32) + level).to(tl.float32), 255.0)
    tl.store(out + place, narrow(pixel, out.dtype.element_ty), mask=inside)


@triton.jit
def noisy_levels_kernel(
    u,
    out,
    guide,
    key,
    image_ids,
    sample_offset,
    num_samples,
    samples_each,
    pixels,
    octets,
    area,
    channels,
    BITS: tl.constexpr,
    STREAM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Each program makes ``samples_each`` copies of a block of counter groups of one image."""
    groups = octets * 8
    blocks = tl.cdiv(groups, GROUPS)
    parts = tl.cdiv(num_samples, samples_each)
    program = tl.program_id(0)
    group = program % blocks * GROUPS + tl.arange(0, GROUPS)
    first = program // blocks % parts * samples_each
    image = (program // blocks // parts).to(tl.int64)
    image_id = tl.load(image_ids + image).to(tl.uint32)
    first_sample = first.to(tl.int64) + tl.load(sample_offset)
    key_bits = tl.load(key)
    # Masked beyond the last group: those pixels belong to the next of the four runs.
    in0 = (group < groups) & (group < pixels)
    in1 = (group < groups) & (group + groups < pixels)
    in2 = (group < groups) & (group + 2 * groups < pixels)
    in3 = (group < groups) & (group + 3 * groups < pixels)
    at0 = memory_offset(group, area, channels, CHANNELS_LAST)
    at1 = memory_offset(group + groups, area, channels, CHANNELS_LAST)
    at2 = memory_offset(group + 2 * groups, area, channels, CHANNELS_LAST)
    at3 = memory_offset(group + 3 * groups, area, channels, CHANNELS_LAST)
    source = u + image * pixels
    u0, u1 = tl.load(source + at0, mask=in0), tl.load(source + at1, mask=in1)
    u2, u3 = tl.load(source + at2, mask=in2), tl.load(source + at3, mask=in3)
    word = like_loaded(group, u0.to(tl.float32)).to(tl.uint32)
    target = out + (image * num_samples + first) * pixels
    for copy in range(0, tl.minimum(num_samples - first, samples_each)):
        sample = (first_sample + copy).to(tl.uint32)
        w0, w1, w2, w3 = philox(word, sample, image_id, STREAM + 4, key_bits)
        _store(target, at0, u0, _level(w0, w1, guide, BITS), in0)
        _store(target, at1, u1, _level(w2, w3, guide, BITS), in1)
        w0, w1, w2, w3 = philox(word, sample, image_id, STREAM + 8, key_bits)
        _store(target, at2, u2, _level(w0, w1, guide, BITS), in2)
        _store(target, at3, u3, _level(w2, w3, guide, BITS), in3)
        target += pixels


def noisy_levels(
    u: torch.Tensor,
    thresholds: torch.Tensor,
    guide: torch.Tensor,
    key: torch.Tensor,
    image_ids: torch.Tensor,
    sample_offset: torch.Tensor,
    num_samples: int,
    stream: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """uint8 (B, ...) -> (B*m, ...) noisy copies of ``dtype``, in the memory format of u."""
    check_levels("noisy_levels", u, dtype)
    check_ids("noisy_levels", image_ids, u)
    bits = bits_of(guide, u.device)
    batch, u = u.shape[0], dense(u)
    last = is_channels_last(u)
    out = empty_rows(u, batch * num_samples, dtype)
    layout = layout_of(u)
    # With few images several programs split the copies of one, and read u again, from the cache.
    blocks = batch * triton.cdiv(layout.octets * 8, GROUPS)
    samples_each = triton.cdiv(num_samples, min(num_samples, triton.cdiv(ENOUGH_PROGRAMS, blocks)))
    key, offset = on_device(u.device, key, sample_offset)
    launch(
        noisy_levels_kernel,
        blocks * triton.cdiv(num_samples, samples_each),
        u,
        out,
        guide.contiguous(),
        key,
        image_ids.contiguous(),
        offset,
        num_samples,
        samples_each,
        *layout,
        num_warps=GROUPS // (32 * groups_of_thread(dtype, last)),
        BITS=bits,
        STREAM=STREAM_WORDS[stream],
        CHANNELS_LAST=last,
        GROUPS=GROUPS,
    )
    return out
