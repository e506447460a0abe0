"""Numbers that change from step to step reach a kernel as memory, never as launch arguments.

A captured CUDA graph replays launch arguments as they were: noise from one key for ever. So each
such number is a 0-dim tensor on the device that the kernel reads; ``on_device`` brings those that
still are on the CPU there in one copy.
"""

from __future__ import annotations

import contextlib
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
    """0-dim float64 or int64 tensors, on ``device``.

    Raises:
        RuntimeError: one is on the CPU while a CUDA graph is captured.
    """
    away = [scalar for scalar in scalars if scalar.device != device]
    if not away:
        return list(scalars)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        if _constant:  # a fill is captured with its value, a copy with an address on the CPU
            return [
                scalar
                if scalar.device == device
                else torch.full((), scalar.item(), dtype=scalar.dtype, device=device)
                for scalar in scalars
            ]
        raise RuntimeError(
            "a CUDA graph is being captured and would replay this step's numbers (noise key, "
            "sigma, lambda, ...) for ever: pass seed, sigma and the others as 0-dim tensors on "
            f"{device} and change them in place between replays"
        )
    packed = torch.stack([scalar.view(torch.int64) for scalar in away]).to(device)
    moved = iter(packed.unbind())
    return [
        scalar if scalar.device == device else next(moved).view(scalar.dtype) for scalar in scalars
    ]
