"""Calls of vote, clopper_pearson_lower and certified_radius."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.runtime.tensors import DTYPE_NAMES

# Work below which waking another thread costs more than it saves (some 20 microseconds).
_LOGITS_PER_THREAD = 32768
_BOUNDS_PER_THREAD = 32


def vote_arguments(
    logits: torch.Tensor, counts: torch.Tensor, device: str
) -> tuple[int, str, int, int, int, int]:
    """The arguments of both cores, for contiguous logits: addresses, dtype and sizes.

    Raises:
        TypeError, ValueError: device, dtype, shape or layout is not what the cores take.
    """
    if logits.device != counts.device or logits.device.type != device:
        raise ValueError(
            f"vote: expected logits and counts on one {device} device, got {logits.device} and "
            f"{counts.device}; move them"
        )
    dtype = DTYPE_NAMES.get(logits.dtype)
    if dtype is None or counts.dtype != torch.int64:
        raise TypeError(
            f"vote: expected logits of {', '.join(DTYPE_NAMES.values())} and counts of int64, got "
            f"{logits.dtype} and {counts.dtype}; convert them"
        )
    shape, sizes = logits.shape, counts.shape
    if len(shape) == 2 and len(sizes) == 2 and counts.is_contiguous():
        (rows, classes), images = shape, sizes[0]
        if sizes[1] == classes > 0 and (rows % images == 0 if images else rows == 0):
            return logits.data_ptr(), dtype, rows, classes, counts.data_ptr(), images
    raise ValueError(
        "vote: expected logits (images*m, K) and contiguous counts (images, K) with K at least 1, "
        f"got {tuple(shape)} and {tuple(sizes)} with strides {counts.stride()}; reshape them"
    )


def vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the argmax of each row of logits (images*m, K) to counts (images, K), on the CPU."""
    logits = logits.contiguous()  # bound to a name, so that its memory outlives the call
    arguments = vote_arguments(logits, counts, "cpu")
    load().vote(*arguments, threads_for(logits.numel(), _LOGITS_PER_THREAD))


def clopper_pearson_lower(
    successes: torch.Tensor, trials: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The lower confidence bound of each (successes, trials); float64 of their shape."""
    return bound("clopper_pearson_lower", successes, trials, [alpha])


def certified_radius(
    successes: torch.Tensor, trials: torch.Tensor, sigma: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The certified radius of each (successes, trials); float64 of their shape."""
    return bound("certified_radius", successes, trials, [sigma, alpha])


def bound(
    name: str, successes: torch.Tensor, trials: torch.Tensor, scalars: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Call the bound ``name`` of the C++ core; float64 of the shape of successes."""
    check_bound(name, successes, trials, scalars, "cpu")
    successes, trials = successes.contiguous(), trials.contiguous()
    out = torch.empty_like(successes, dtype=torch.float64)
    size = successes.numel()
    getattr(load(), name)(
        successes.data_ptr(),
        trials.data_ptr(),
        *(scalar.item() for scalar in scalars),
        out.data_ptr(),
        size,
        threads_for(size, _BOUNDS_PER_THREAD),
    )
    return out


def check_bound(
    name: str,
    successes: torch.Tensor,
    trials: torch.Tensor,
    scalars: Sequence[torch.Tensor],
    device: str,
) -> None:
    """Check dtypes, shapes and devices, which the cores rely on.

    Raises:
        TypeError, ValueError: they are not what the cores take.
    """
    if (
        successes.device != trials.device
        or successes.device.type != device
        or successes.dtype != torch.int64
        or trials.dtype != torch.int64
        or successes.shape != trials.shape
    ):
        raise ValueError(
            f"{name}: expected successes and trials of one shape, int64, on one {device} device, "
            f"got {tuple(successes.shape)} {successes.dtype} on {successes.device} and "
            f"{tuple(trials.shape)} {trials.dtype} on {trials.device}; convert them"
        )
    for scalar in scalars:
        if scalar.dtype != torch.float64 or scalar.dim() != 0:
            raise TypeError(
                f"{name}: expected alpha and sigma as 0-dim float64 tensors, got {scalar.dtype} of "
                f"shape {tuple(scalar.shape)}; convert them"
            )
