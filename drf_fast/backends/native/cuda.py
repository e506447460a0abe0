"""Operations that the CUDA core runs on CUDA tensors; none where it is not built or not usable.

The other operations have kernels in Triton: ``backends/triton.py``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

from drf_fast.backends import triton
from drf_fast.backends.native import counting, library

__all__ = ["OPERATIONS", "certified_radius", "clopper_pearson_lower", "vote"]

_IMPLEMENTED = ("vote", "clopper_pearson_lower", "certified_radius")

# Operation -> kind of its implementation, as far as this installation can run it.
OPERATIONS: dict[str, str]


@functools.cache
def _operations() -> dict[str, str]:
    reason = library.cuda_why_not()
    if reason is None:
        return dict.fromkeys(_IMPLEMENTED, "native")
    # Reached only with CUDA tensors in hand, and once.
    triton.warn_once(f"{', '.join(_IMPLEMENTED)}: {reason}")
    return {}


def __getattr__(name: str) -> Any:
    # Asking the driver starts CUDA in this process, which a CPU run that forks must not suffer;
    # so OPERATIONS is settled when the first CUDA tensor asks for it, not at import.
    if name == "OPERATIONS":
        return _operations()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """As ``vote``, on the tensors' CUDA device and its current stream, without waiting for it."""
    logits = logits.contiguous()
    arguments = counting.vote_arguments(logits, counts, "cuda")
    library.load_cuda().vote(*arguments, *_index_and_stream(logits.device))


def _index_and_stream(device: torch.device) -> tuple[int, int]:
    """Where the CUDA core shall launch: the device's index and the handle of its current stream."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def clopper_pearson_lower(
    successes: torch.Tensor, trials: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """As ``clopper_pearson_lower``, on the tensors' CUDA device, without waiting for it.

    What the CPU refuses (impossible counts, an alpha that is no probability) gives the bound 0,
    which is true of any probability; with DRF_FAST_DEBUG=1 it is the same error as on the CPU.
    """
    return _bound("clopper_pearson_lower", successes, trials, [alpha])


def certified_radius(
    successes: torch.Tensor, trials: torch.Tensor, sigma: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """As ``certified_radius``, on the tensors' CUDA device, without waiting for it.

    What the CPU refuses gives the radius 0, which claims nothing; with DRF_FAST_DEBUG=1 it is the
    same error as on the CPU.
    """
    return _bound("certified_radius", successes, trials, [sigma, alpha])


def _bound(
    name: str, successes: torch.Tensor, trials: torch.Tensor, scalars: Sequence[torch.Tensor]
) -> torch.Tensor:
    # Not above: a source tree that was never installed has no drf_fast.kernels.
    from drf_fast.kernels.scalars import on_device  # pyright: ignore[reportMissingImports]

    counting.check_bound(name, successes, trials, scalars, "cuda")
    if os.environ.get("DRF_FAST_DEBUG") == "1":  # for its errors alone
        counting.bound(name, successes.cpu(), trials.cpu(), [scalar.cpu() for scalar in scalars])
    successes, trials = successes.contiguous(), trials.contiguous()
    out = torch.empty_like(successes, dtype=torch.float64)
    scalars = on_device(successes.device, *scalars)
    getattr(library.load_cuda(), name)(
        successes.data_ptr(),
        trials.data_ptr(),
        *(scalar.data_ptr() for scalar in scalars),
        out.data_ptr(),
        successes.numel(),
        *_index_and_stream(successes.device),
    )
    return out
