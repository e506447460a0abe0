"""The logits in whatever a network returns, and whether two agree."""

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


def logits_agree(got: torch.Tensor, expected: torch.Tensor, bf16: bool = False) -> bool:
    """Whether logits agree up to rounding (``bf16``: to bfloat16), relative to the largest one.

    Logits of masked classes, infinite or far larger than the others, are no measure for these: each
    is compared relative to itself.
    """
    if got.shape != expected.shape:
        return False
    size = expected.float().abs()
    usual = size[size.isfinite()]
    if len(usual):
        moderate = usual[usual <= 1e3]
        least = moderate.max() if len(moderate) else usual.min()
        usual = usual[usual <= max(1e3, 100 * float(least))]
    half = bf16 or expected.dtype not in (torch.float32, torch.float64)
    tolerance = 3e-2 if half else 1e-4
    scale = max(1e-30, float(usual.max())) if len(usual) else 1e-30
    equal = (got == expected) | (got.isnan() & expected.isnan())
    near = (got - expected).abs() <= tolerance * size.clamp(min=scale)
    return bool((equal | (near & size.isfinite())).all())
