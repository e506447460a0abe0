"""Whether a check of arguments may read the values of tensors."""

from __future__ import annotations

import os

import torch

from drf_fast.runtime.tracing import are_values_unknown


def debugging() -> bool:
    """Whether ``DRF_FAST_DEBUG=1`` asks for checks that wait for the device."""
    return os.environ.get("DRF_FAST_DEBUG") == "1"


def may_read(device: torch.device) -> bool:
    """Whether values on the device may be read, to raise on bad ones.

    On a GPU, where reading waits for all work that is queued, only when ``debugging``. In compiled
    code, on the meta device, of fake tensors and in what make_fx records there are no values.
    """
    if torch.compiler.is_compiling() or device.type == "meta" or are_values_unknown():
        return False
    return device.type == "cpu" or debugging()
