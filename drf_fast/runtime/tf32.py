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
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was
