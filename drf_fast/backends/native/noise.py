"""Calls of noisy_repeat, its backward, and noisy_levels."""

from __future__ import annotations

import math

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.runtime.level_table import bits_of
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.raw_arguments import check_ids
from drf_fast.runtime.tensors import DTYPE_NAMES, empty_rows, is_channels_last

# Normals below which waking another thread costs more than it saves.
NORMALS_PER_THREAD = 16384


def noisy_repeat(
    x: torch.Tensor,
    sigma: torch.Tensor,
    key: torch.Tensor,
    image_ids: torch.Tensor,
    sample_offset: torch.Tensor,
    num_samples: int,
    stream: str,
) -> torch.Tensor:
    """(B, ...) -> (B*m, ...) noisy copies, in the dtype and memory format of x."""
    x, image_ids, out, layout = _prepare("noisy_repeat", x, image_ids, num_samples, x.dtype)
    load().noisy_repeat(
        x=x.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[x.dtype],
        **layout,
        image_ids=image_ids.data_ptr(),
        sample_offset=sample_offset.item(),
        stream=STREAM_WORDS[stream],
        key=key.item(),
        sigma=sigma.item(),
        threads=threads_for(out.numel(), NORMALS_PER_THREAD),
    )
    return out


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
    if u.dtype != torch.uint8:
        raise TypeError(f"noisy_levels: expected uint8 images, got {u.dtype}; convert them")
    bits = bits_of(guide, u.device)
    u, image_ids, out, layout = _prepare("noisy_levels", u, image_ids, num_samples, dtype)
    guide = guide.contiguous()
    load().noisy_levels(
        u=u.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[dtype],
        **layout,
        image_ids=image_ids.data_ptr(),
        sample_offset=sample_offset.item(),
        stream=STREAM_WORDS[stream],
        key=key.item(),
        guide=guide.data_ptr(),
        bits=bits,
        threads=threads_for(out.numel(), NORMALS_PER_THREAD),
    )
    return out


def _prepare(
    name: str, x: torch.Tensor, image_ids: torch.Tensor, num_samples: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, int]]:
    """Contiguous images and ids, an empty (B*m, ...) output, and the sizes that the core takes."""
    channels_last = is_channels_last(x)
    if not channels_last:
        x = x.contiguous()
    shape = x.shape
    batch = shape[0]
    on_cpu = x.is_cpu and image_ids.is_cpu
    if not on_cpu or image_ids.shape != (batch,) or image_ids.dtype != torch.int64:
        check_ids(name, image_ids, x)
        raise ValueError(f"{name}: expected tensors on the CPU, got {x.device}; move them")
    out = empty_rows(x, batch * num_samples, dtype)
    channels = shape[1] if channels_last else 1
    sizes = {
        "batch": batch,
        "num_samples": num_samples,
        "channels": channels,
        "area": math.prod(shape[1:]) // channels,
        "channels_last": channels_last,
    }
    return x, image_ids.contiguous(), out, sizes


def noisy_repeat_backward(grad: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Sum over the m copies: (B*m, ...) -> (B, ...), in the dtype and memory format of grad."""
    if not is_channels_last(grad):
        grad = grad.contiguous()
    batch = grad.shape[0] // num_samples
    if grad.device.type != "cpu" or batch * num_samples != grad.shape[0]:
        raise ValueError(
            f"noisy_repeat_backward: expected {num_samples} rows an image on the CPU, got "
            f"{grad.shape[0]} rows on {grad.device}"
        )
    out = empty_rows(grad, batch)
    load().noisy_repeat_backward(
        grad=grad.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[grad.dtype],
        batch=batch,
        num_samples=num_samples,
        pixels=math.prod(grad.shape[1:]),
        threads=threads_for(grad.numel(), 4 * NORMALS_PER_THREAD),
    )
    return out
