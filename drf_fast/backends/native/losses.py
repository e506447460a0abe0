"""Calls of smooth_ce, consistency_loss and macer_loss."""

from __future__ import annotations

from typing import NoReturn

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.runtime.raw_arguments import check_loss
from drf_fast.runtime.tensors import DTYPE_NAMES

# Logits below which waking another thread costs more than it saves.
_LOGITS_PER_THREAD = 8192


def _refuse(name: str, logits: torch.Tensor, target: torch.Tensor) -> NoReturn:
    """Raise for bad arguments; outside ``_loss``, to keep its checks of good ones cheap."""
    check_loss(name, logits, target)
    raise ValueError(
        f"{name}: expected tensors on the CPU, got logits on {logits.device} and labels on "
        f"{target.device}; move them"
    )


def _loss(
    name: str,
    logits: torch.Tensor,
    target: torch.Tensor,
    reduction: str,
    need_grad: bool,
    **weights: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient in the layout of the logits (empty without need_grad)."""
    dtype = DTYPE_NAMES.get(logits.dtype)
    if dtype is None or logits.dim() != 3 or target.dtype is not torch.int64:
        _refuse(name, logits, target)
    batch, samples, classes = logits.shape
    if (
        batch * samples == 0
        or classes < 2
        or target.shape != (batch,)
        or not (logits.is_cpu and target.is_cpu)
    ):
        _refuse(name, logits, target)
    image_stride, sample_stride, class_stride = logits.stride()
    source = logits
    if class_stride != 1:
        source = logits.contiguous()
        image_stride, sample_stride, _ = source.stride()
    if not target.is_contiguous():
        target = target.contiguous()
    size = (batch,) if reduction == "none" else ()
    # Without dtype= this takes half as long, which counts in small calls.
    halves = dtype in ("bfloat16", "float16")
    loss = logits.new_empty(size, dtype=torch.float32) if halves else logits.new_empty(size)
    out_pointer = out_image_stride = out_sample_stride = 0
    if need_grad:
        grad = out = torch.empty_like(logits)
        out_image_stride, out_sample_stride, out_class_stride = out.stride()
        if out_class_stride != 1:  # the core writes contiguous rows
            out = torch.empty(logits.shape, dtype=logits.dtype, device="cpu")
            out_image_stride, out_sample_stride, _ = out.stride()
        out_pointer = out.data_ptr()
    else:
        grad = out = logits.new_empty(0)
    getattr(load(), name)(
        logits=source.data_ptr(),
        dtype=dtype,
        batch=batch,
        samples=samples,
        classes=classes,
        logits_image_stride=image_stride,
        logits_sample_stride=sample_stride,
        target=target.data_ptr(),
        reduction=reduction,
        loss=loss.data_ptr(),
        grad=out_pointer,
        grad_image_stride=out_image_stride,
        grad_sample_stride=out_sample_stride,
        threads=threads_for(batch * samples * classes, _LOGITS_PER_THREAD),
        **weights,
    )
    return loss, grad if out is grad else grad.copy_(out)


def smooth_ce(
    logits: torch.Tensor, target: torch.Tensor, reduction: str, need_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    return _loss("smooth_ce", logits, target, reduction, need_grad)


def consistency_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    lam: torch.Tensor,
    eta: torch.Tensor,
    reduction: str,
    need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    weights = {"lam": lam.item(), "eta": eta.item()}
    return _loss("consistency_loss", logits, target, reduction, need_grad, **weights)


def macer_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    sigma: torch.Tensor,
    lam: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of logits (B, m, K) with labels (B,)."""
    weights = {
        "sigma": sigma.item(),
        "lam": lam.item(),
        "gamma": gamma.item(),
        "beta": beta.item(),
    }
    return _loss("macer_loss", logits, target, "mean", need_grad, **weights)
