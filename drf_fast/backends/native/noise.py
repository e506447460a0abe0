"""Calls of noisy_repeat and its backward."""

from __future__ import annotations

import math

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.runtime.randomness import STREAM_WORDS
from drf_fast.runtime.tensors import DTYPE_NAMES, is_channels_last

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
    last = is_channels_last(x)
    if not last:
        x = x.contiguous()
    image_ids = image_ids.contiguous()
    batch = x.shape[0]
    if x.device.type != "cpu" or image_ids.shape != (batch,) or image_ids.dtype != torch.int64:
        raise ValueError(
            f"noisy_repeat: expected images on the CPU and one int64 id for each, got {x.device} "
            f"and ids of {image_ids.dtype} {tuple(image_ids.shape)} for {batch} images"
        )
    if last:
        channels, area = x.shape[1], x.shape[2] * x.shape[3]
    else:
        channels, area = 1, math.prod(x.shape[1:])
    out = torch.empty(
        (batch * num_samples, *x.shape[1:]),
        dtype=x.dtype,
        memory_format=torch.channels_last if last else torch.contiguous_format,
        device="cpu",
    )
    load().noisy_repeat(
        x=x.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[x.dtype],
        batch=batch,
        num_samples=num_samples,
        channels=channels,
        area=area,
        channels_last=last,
        image_ids=image_ids.data_ptr(),
        sample_offset=sample_offset.item(),
        stream=STREAM_WORDS[stream],
        key=key.item(),
        sigma=sigma.item(),
        threads=threads_for(out.numel(), NORMALS_PER_THREAD),
    )
    return out


def noisy_repeat_backward(grad: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Sum over the m copies: (B*m, ...) -> (B, ...), in the dtype and memory format of grad."""
    last = is_channels_last(grad)
    if not last:
        grad = grad.contiguous()
    batch = grad.shape[0] // num_samples
    if grad.device.type != "cpu" or batch * num_samples != grad.shape[0]:
        raise ValueError(
            f"noisy_repeat_backward: expected {num_samples} rows an image on the CPU, got "
            f"{grad.shape[0]} rows on {grad.device}"
        )
    out = torch.empty(
        (batch, *grad.shape[1:]),
        dtype=grad.dtype,
        memory_format=torch.channels_last if last else torch.contiguous_format,
        device="cpu",
    )
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
