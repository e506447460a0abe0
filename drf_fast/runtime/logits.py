"""The logits in whatever a network returns, and exceptions of networks as one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def logits_of(output: Any) -> torch.Tensor:
    """The (N, K) logits of a network's output.

    A tensor is returned as it is; of an object with ``.logits`` (Hugging Face, torchvision's
    networks with auxiliary outputs) or a dict with ``"logits"`` these; of a tuple or list the first
    tensor.

    Raises:
        TypeError: the output has no tensor there.
    """
    if isinstance(output, torch.Tensor):
        return output
    found = None
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        found = next((part for part in output if isinstance(part, torch.Tensor)), None)
    else:
        found = getattr(output, "logits", None)
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            "the network must return logits: a tensor, a tuple that begins with them, a dict with "
            f"'logits' or an object with .logits, got {type(output).__name__}; wrap the network in "
            "one that returns its logits"
        )
    return found


def one_line(error: BaseException, most: int = 300) -> str:
    """The type and message of an exception on one line, at most ``most`` characters of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}".rstrip(": ")
