"""TF32: products of float32 numbers on a GPU with 11 significant bits of each factor.

Sums stay float32, and tensor cores are several times faster. torch allows it for convolutions and
forbids it for matrix products, by two switches of the process; here each forward pass says what it
takes, so that a certificate is of one arithmetic, whatever the switches are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_DEVICES = ("cuda",)  # on which the switches mean something
_OLD = "allow_tf32"


def why_not(device: torch.device) -> str | None:
    """One sentence why the device has no TF32, None where it has."""
    needs = "TF32 needs an NVIDIA GPU of compute capability 8.0 or newer"
    if device.type not in _DEVICES or torch.version.hip is not None:
        return f"{needs}, got {device.type}"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"{needs}, got {capability[0]}.{capability[1]}"


@contextlib.contextmanager
def switched(device: torch.device, on: bool) -> Iterator[None]:
    """Inside, convolutions and products of float32 on the device are TF32, or are not.

    Raises:
        RuntimeError: ``on``, and the device has no TF32.
    """
    if on and (reason := why_not(device)) is not None:
        raise RuntimeError(reason)
    if device.type not in _DEVICES:
        yield
        return
    before = []
    for owner, name in _switches():
        # An old one is not told where the new ones were set to something else.
        with contextlib.suppress(RuntimeError):
            before.append((owner, name, getattr(owner, name)))
    try:
        for owner, name in _switches():
            setattr(owner, name, on if name == _OLD else "tf32" if on else "ieee")
        yield
    finally:
        for owner, name, was in before:
            setattr(owner, name, was)


def _switches() -> list[tuple[Any, str]]:
    """Owners and names: the old ones first, which change the new ones of torch 2.9 and later."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = [matmul, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    return [(matmul, _OLD), (cudnn, _OLD), *((owner, "fp32_precision") for owner in new)]
