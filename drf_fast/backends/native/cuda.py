"""The operations of the CUDA core, for CUDA tensors; none where it is not built or not usable.

The other operations have kernels in Triton: ``backends/triton.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from drf_fast.backends.fallback import warn_once
from drf_fast.backends.native import counting, library
from drf_fast.runtime.values import may_read

__all__ = ["IMPLEMENTED", "OPERATIONS", "certified_radius", "clopper_pearson_lower", "vote"]

IMPLEMENTED = ("vote", "clopper_pearson_lower", "certified_radius")

# Operation -> its backend, for those that this installation can run.
OPERATIONS: dict[str, str]


@functools.cache
def _operations() -> dict[str, str]:
    reason = library.cuda_why_not()
    if reason is None:
        return dict.fromkeys(IMPLEMENTED, "native")
    # Reached once at most, and only when an operation is called with CUDA tensors.
    warn_once(f"{', '.join(IMPLEMENTED)}: {reason}")
    return {}


def __getattr__(name: str) -> Any:
    # Asking the driver initialises CUDA, after which a process must not fork; so OPERATIONS is
    # computed when the first CUDA tensor needs it, not at import.
    if name == "OPERATIONS":
        return _operations()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """As ``vote``, on the tensors' CUDA device and its current stream, without waiting for it."""
    logits = logits.contiguous()
    arguments = counting.vote_arguments(logits, counts, "cuda")
    library.load_cuda().vote(*arguments, *_index_and_stream(logits.device))


def _index_and_stream(device: torch.device) -> tuple[int, int]:
    """The index of the device and the handle of its current stream, for a launch."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def clopper_pearson_lower(
    successes: torch.Tensor, trials: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """As ``clopper_pearson_lower``, on the tensors' CUDA device, without waiting for it.

    Values that raise on the CPU (impossible counts, an alpha that is no probability) give the
    bound 0, which holds for any probability; with DRF_FAST_DEBUG=1 they raise as on the CPU.
    """
    return _bound("clopper_pearson_lower", successes, trials, [alpha])


def certified_radius(
    successes: torch.Tensor, trials: torch.Tensor, sigma: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """As ``certified_radius``, on the tensors' CUDA device, without waiting for it.

    Values that raise on the CPU give the radius 0, which claims nothing; with DRF_FAST_DEBUG=1 they
    raise as on the CPU.
    """
    return _bound("certified_radius", successes, trials, [sigma, alpha])


def _bound(
    name: str, successes: torch.Tensor, trials: torch.Tensor, scalars: Sequence[torch.Tensor]
) -> torch.Tensor:
    # Imported here, since a source tree that was never installed has no drf_fast.kernels.
    from drf_fast.kernels.scalars import on_device  # pyright: ignore[reportMissingImports]

    counting.check_bound(name, successes, trials, scalars, "cuda")
    if may_read(successes.device):  # the C++ core raises on bad values
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
