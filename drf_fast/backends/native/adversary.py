"""Calls of adversary_step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.backends.native.noise import NORMALS_PER_THREAD
from drf_fast.runtime.raw_arguments import check_step
from drf_fast.runtime.tensors import DTYPE_NAMES, arithmetic_dtype, is_channels_last


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
    if not x.is_cpu:
        raise ValueError(f"adversary_step: expected tensors on the CPU, got {x.device}; move them")
    out = torch.empty_like(x)
    channels_last = is_channels_last(out)
    if not channels_last and not out.is_contiguous():
        # Dense in an order of its own, which out must keep.
        contiguous, noisy, distance = adversary_step(
            grad,
            x.contiguous(),
            x_adv,
            step_size,
            epsilon,
            lam,
            sigma,
            key,
            image_ids,
            ball,
            grad_norm,
            clamp,
        )
        return out.copy_(contiguous), noisy, distance
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grad = grad.contiguous(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    x_adv = x_adv.contiguous(memory_format=layout)
    image_ids = image_ids.contiguous()
    noisy = torch.empty(grad.shape, dtype=x.dtype, memory_format=layout, device="cpu")
    batch = x.shape[0]
    distance = torch.empty(batch, dtype=arithmetic_dtype(x.dtype), device="cpu")
    low, high = (0.0, 0.0) if clamp is None else clamp
    load().adversary_step(
        grad=grad.data_ptr(),
        x=x.data_ptr(),
        x_adv=x_adv.data_ptr(),
        out=out.data_ptr(),
        noisy=noisy.data_ptr(),
        distance=distance.data_ptr(),
        dtype=DTYPE_NAMES[x.dtype],
        batch=batch,
        num_samples=grad.shape[0] // batch,
        channels=x.shape[1] if channels_last else 1,
        area=x.shape[2] * x.shape[3] if channels_last else math.prod(x.shape[1:]),
        channels_last=channels_last,
        image_ids=image_ids.data_ptr(),
        key=key.item(),
        sigma=sigma.item(),
        step_size=step_size.item(),
        epsilon=epsilon.item(),
        lam=lam.item(),
        ball=ball,
        grad_norm=grad_norm,
        clamp=clamp is not None,
        low=low,
        high=high,
        threads=threads_for(noisy.numel(), NORMALS_PER_THREAD),
    )
    return out, noisy, distance
