"""Numbers that change from step to step reach a kernel as memory, never as launch arguments.

A captured CUDA graph replays launch arguments as they were: noise from one key for ever. So each
such number is a 0-dim tensor on the device that the kernel reads; ``on_device`` finds those that
still are on the CPU a place there. Most come back at every step, so their places are kept.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

_constant = False


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Inside, numbers on the CPU may be captured: whoever captures makes a new graph for new ones.

    A noise key is no constant: it has to be on the device all the same, by the caller's care.
    """
    global _constant
    before, _constant = _constant, True
    try:
        yield
    finally:
        _constant = before


def on_device(device: torch.device, *scalars: torch.Tensor) -> list[torch.Tensor]:
    """0-dim float64 or int64 tensors, on ``device``; to be read only.

    Raises:
        RuntimeError: one is on the CPU while a CUDA graph is captured.
    """
    if all(scalar.device == device for scalar in scalars):
        return list(scalars)
    place, stream = _filled, 0
    if device.type == "cuda":
        if not torch.cuda.is_current_stream_capturing():
            # Another stream would not wait for the fill.
            place, stream = _kept, torch.cuda.current_stream(device).cuda_stream
        elif not _constant:
            raise RuntimeError(
                "a CUDA graph is being captured and would replay this step's numbers (noise key, "
                "sigma, lambda, ...) for ever: pass seed, sigma and the others as 0-dim tensors on "
                f"{device} and change them in place between replays"
            )
    return [
        scalar
        if scalar.device == device
        else place(device, stream, scalar.dtype, scalar.view(torch.int64).item())
        for scalar in scalars
    ]


def _filled(device: torch.device, stream: int, dtype: torch.dtype, bits: int) -> torch.Tensor:
    """A new tensor with these 64 bits, without a copy from the CPU, which no graph could hold."""
    return torch.full((), bits, dtype=torch.int64, device=device).view(dtype)


_kept = functools.lru_cache(maxsize=4096)(_filled)
