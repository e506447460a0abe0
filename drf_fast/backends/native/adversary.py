"""Calls of adversary_step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.backends.native.noise import NORMALS_PER_THREAD
from drf_fast.runtime.tensors import DTYPE_NAMES, arithmetic_dtype, is_channels_last


def _check(
    grad: torch.Tensor, x: torch.Tensor, x_adv: torch.Tensor, image_ids: torch.Tensor
) -> None:
    batch = x.shape[0] if x.dim() else 0
    if (
        batch == 0
        or x_adv.shape != x.shape
        or grad.shape[1:] != x.shape[1:]
        or grad.shape[0] % batch
        or grad.shape[0] == 0
    ):
        raise ValueError(
            "adversary_step: expected x and x_adv (B, ...) and grad (B*m, ...), got "
            f"{tuple(x.shape)}, {tuple(x_adv.shape)} and {tuple(grad.shape)}; reshape them"
        )
    if not x.dtype == x_adv.dtype == grad.dtype or x.dtype not in DTYPE_NAMES:
        raise TypeError(
            f"adversary_step: expected images of one of {', '.join(DTYPE_NAMES.values())}, got "
            f"{grad.dtype}, {x.dtype} and {x_adv.dtype}; convert them"
        )
    if image_ids.shape != (batch,) or image_ids.dtype != torch.int64:
        raise ValueError(
            f"adversary_step: expected one int64 id for each of {batch} images, got ids of "
            f"{image_ids.dtype} {tuple(image_ids.shape)}"
        )
    if not (grad.is_cpu and x.is_cpu and x_adv.is_cpu and image_ids.is_cpu):
        raise ValueError(
            f"adversary_step: expected tensors on the CPU, got {grad.device}, {x.device}, "
            f"{x_adv.device} and ids on {image_ids.device}; move them"
        )


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
    _check(grad, x, x_adv, image_ids)
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
