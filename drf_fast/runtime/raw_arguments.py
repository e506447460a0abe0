"""Checks of raw operations' arguments, on which the memory safety of cores and kernels rests.

Public operations have checked theirs before, with messages for users; these are for direct calls.
"""

from __future__ import annotations

import torch

from drf_fast.runtime.tensors import FLOATS

_FLOATS = ", ".join(map(str, FLOATS))


def check_loss(name: str, logits: torch.Tensor, target: torch.Tensor) -> None:
    """Refuse logits that are not (B, m, K), K at least 2, or labels that are not (B,) int64.

    Raises:
        TypeError, ValueError: wrong shape or dtype, or two devices.
    """
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
    if logits.dtype not in FLOATS or target.dtype != torch.int64:
        raise TypeError(
            f"{name}: expected logits of one of {_FLOATS} and int64 labels, got {logits.dtype} and "
            f"{target.dtype}; convert them"
        )
    if logits.device != target.device:
        raise ValueError(
            f"{name}: expected tensors on one device, got logits on {logits.device} and labels on "
            f"{target.device}; move them"
        )


def check_step(
    grad: torch.Tensor, x: torch.Tensor, x_adv: torch.Tensor, image_ids: torch.Tensor
) -> None:
    """Refuse arguments of adversary_step other than x, x_adv (B, ...), grad (B*m, ...), ids (B,).

    Raises:
        TypeError, ValueError: wrong shape or dtype, or several devices.
    """
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
    if not x.dtype == x_adv.dtype == grad.dtype or x.dtype not in FLOATS:
        raise TypeError(
            f"adversary_step: expected images of one of {_FLOATS}, got {grad.dtype}, {x.dtype} and "
            f"{x_adv.dtype}; convert them"
        )
    if not grad.device == x.device == x_adv.device:
        raise ValueError(
            f"adversary_step: expected tensors on one device, got {grad.device}, {x.device} and "
            f"{x_adv.device}; move them"
        )
    check_ids("adversary_step", image_ids, x)


def check_ids(name: str, image_ids: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse ids that are not one int64 for each image of x, on its device.

    Raises:
        ValueError: they have another number, dtype or device.
    """
    expected = (x.shape[:1], torch.int64, x.device)
    if (image_ids.shape, image_ids.dtype, image_ids.device) != expected:
        raise ValueError(
            f"{name}: expected one int64 id for each of {x.shape[0]} images on {x.device}, got ids "
            f"of {image_ids.dtype} {tuple(image_ids.shape)} on {image_ids.device}"
        )


def refuse_bad_images(
    bad_label: torch.Tensor, bad_logits: torch.Tensor, target: torch.Tensor, classes: int
) -> None:
    """Raise for the first image with a label out of range or logits that are no distribution.

    Args:
        bad_label, bad_logits: (B,) bool.
        target: (B,) labels.

    Raises:
        ValueError: there is one.
    """
    if bad_label.any():
        index = int(bad_label.nonzero()[0])
        raise ValueError(
            f"target must lie in 0..{classes - 1} for logits of {classes} classes, "
            f"got {int(target[index])} at index {index}; check the labels or the network's width"
        )
    if bad_logits.any():
        raise ValueError(
            "logits must be numbers (no NaN, no +inf, no row of -inf only), got such a row for "
            f"image {int(bad_logits.nonzero()[0])}; the network diverged or its input holds NaN"
        )
