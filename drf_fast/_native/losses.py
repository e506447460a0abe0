"""Calls of smooth_ce, consistency_loss and macer_loss."""

from __future__ import annotations

import torch

from drf_fast._native import DTYPES, load, threads_for

# Logits below which waking another thread costs more than it saves.
_LOGITS_PER_THREAD = 8192


def _check(name: str, logits: torch.Tensor, target: torch.Tensor) -> None:
    if logits.dim() != 3 or logits.shape[2] < 2 or not logits.numel():
        raise ValueError(
            f"{name}: expected logits (B, m, K), not empty, with K at least 2, got "
            f"{tuple(logits.shape)}; reshape them"
        )
    if target.shape != logits.shape[:1]:
        raise ValueError(
            f"{name}: expected one label for each of {logits.shape[0]} images, got labels of "
            f"shape {tuple(target.shape)}"
        )
    if logits.dtype not in DTYPES or target.dtype != torch.int64:
        raise TypeError(
            f"{name}: expected logits of {', '.join(DTYPES.values())} and int64 labels, got "
            f"{logits.dtype} and {target.dtype}; convert them"
        )
    if not (logits.is_cpu and target.is_cpu):
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
    *weights: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient in the layout of the logits (empty without need_grad)."""
    _check(name, logits, target)
    batch, samples, classes = logits.shape
    source = logits if logits.stride(2) == 1 else logits.contiguous()
    image_stride, sample_stride, _ = source.stride()
    target = target.contiguous()
    loss = torch.empty(
        batch if reduction == "none" else (),
        dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32,
    )
    if need_grad:
        grad = torch.empty_like(logits)
        # Rows of the gradient, too, are written whole.
        out = grad if grad.stride(2) == 1 else torch.empty(logits.shape, dtype=logits.dtype)
        out_pointer, (out_image_stride, out_sample_stride, _) = out.data_ptr(), out.stride()
    else:
        grad = out = logits.new_empty(0)
        out_pointer = out_image_stride = out_sample_stride = 0
    getattr(load(), name)(
        source.data_ptr(),
        DTYPES[logits.dtype],
        batch,
        samples,
        classes,
        image_stride,
        sample_stride,
        target.data_ptr(),
        reduction,
        loss.data_ptr(),
        out_pointer,
        out_image_stride,
        out_sample_stride,
        threads_for(batch * samples * classes, _LOGITS_PER_THREAD),
        *weights,
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
    return _loss("consistency_loss", logits, target, reduction, need_grad, lam.item(), eta.item())


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
    weights = (sigma.item(), lam.item(), gamma.item(), beta.item())
    return _loss("macer_loss", logits, target, "mean", need_grad, *weights)
