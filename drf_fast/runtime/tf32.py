"""TF32: products of float32 numbers on a GPU with 11 significant bits of each factor.

Sums stay float32, and tensor cores are several times faster. torch allows it for convolutions and
forbids it for matrix products, by two process-wide switches; here each forward pass sets them, so
that a certificate is of one arithmetic, however the user has set the switches. One thread at a time
holds them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_DEVICES = ("cuda",)  # device types on which the switches have an effect
_LEGACY = "allow_tf32"
_LOCK = threading.RLock()  # blocks may lie in one another


def why_not(device: torch.device) -> str | None:
    """The reason, in one sentence, why the device has no TF32; None if it has."""
    needs = "TF32 needs an NVIDIA GPU of compute capability 8.0 or newer"
    if device.type not in _DEVICES or torch.version.hip is not None:
        return f"{needs}, got {device.type}"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"{needs}, got {capability[0]}.{capability[1]}"


@contextlib.contextmanager
def switched(device: torch.device, on: bool) -> Iterator[None]:
    """Switch TF32 on or off for float32 convolutions and matrix products, inside the block.

    Raises:
        RuntimeError: ``on``, and the device has no TF32.
    """
    if on and (reason := why_not(device)) is not None:
        raise RuntimeError(reason)
    if device.type not in _DEVICES:
        yield
        return
    with _LOCK:
        before = []
        for owner, name in _switches():
            # Reading a legacy switch raises where the new ones have been set to mixed values.
            with contextlib.suppress(RuntimeError):
                before.append((owner, name, getattr(owner, name)))
        try:
            for owner, name in _switches():
                setattr(owner, name, on if name == _LEGACY else "tf32" if on else "ieee")
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


def _switches() -> list[tuple[Any, str]]:
    """(owner, attribute) pairs, the legacy ones first: they change the new ones of torch >= 2.9."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = [matmul, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    return [(matmul, _LEGACY), (cudnn, _LEGACY), *((owner, "fp32_precision") for owner in new)]
