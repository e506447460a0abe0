"""Numbers that change from step to step are passed to kernels in memory, not as launch arguments.

A captured CUDA graph replays the same launch arguments for ever, the noise key among them. So each
such number is a 0-dim tensor on the device that the kernel reads; ``on_device`` copies those that
are on the CPU. Most recur at every step, so the copies are cached.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from drf_fast.kernels.launch import current

_capturing_constants: ContextVar[bool] = ContextVar("capturing constants", default=False)


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Inside, numbers on the CPU may be captured as constants: new ones need a new graph.

    A noise key is no constant: the caller must put it on the device.
    """
    token = _capturing_constants.set(True)
    try:
        yield
    finally:
        _capturing_constants.reset(token)


def on_device(device: torch.device, *scalars: torch.Tensor) -> list[torch.Tensor]:
    """0-dim float64 or int64 tensors, on ``device``; to be read only.

    Raises:
        RuntimeError: one is on the CPU while a CUDA graph is captured.
    """
    if all(scalar.device == device for scalar in scalars):
        return list(scalars)
    make, stream = _filled, 0
    if device.type == "cuda":
        with current(device):  # torch takes the stream of the current device
            captured = torch.cuda.is_current_stream_capturing()
        if not captured:
            # Cached for this stream alone: another one would not wait for the fill.
            make, stream = _kept, torch.cuda.current_stream(device).cuda_stream
        elif not _capturing_constants.get():
            raise RuntimeError(
                "a CUDA graph is being captured and would replay this step's numbers (noise key, "
                "sigma, lambda, ...) for ever: pass seed, sigma and the others as 0-dim tensors on "
                f"{device} and change them in place between replays"
            )
    return [
        scalar
        if scalar.device == device
        else make(device, stream, scalar.dtype, scalar.view(torch.int64).item())
        for scalar in scalars
    ]


def _filled(device: torch.device, stream: int, dtype: torch.dtype, bits: int) -> torch.Tensor:
    """A new tensor with these 64 bits, by a fill: no graph can capture a copy from the CPU."""
    return torch.full((), bits, dtype=torch.int64, device=device).view(dtype)


_kept = functools.lru_cache(maxsize=4096)(_filled)
