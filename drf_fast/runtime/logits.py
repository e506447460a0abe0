"""The logits in whatever a network returns, and what went wrong where it returns none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def logits_of(output: Any) -> torch.Tensor:
    """The (N, K) logits of a network's output.

    A tensor is the logits. Of an object with ``.logits`` (Hugging Face, torchvision's networks with
    auxiliary outputs) or a dict with ``"logits"`` it is those, of a tuple or list the first tensor.

    Raises:
        TypeError: there is no tensor at these places.
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


def told(error: BaseException, most: int = 300) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}".rstrip(": ")
