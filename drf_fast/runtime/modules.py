"""Facts about a network's modules: hooks and forwards of their own, dtype, memory format."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as _torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Those registered for all modules, in dictionaries that torch changes and never replaces.
_OF_ALL = [getattr(_torch, f"_global{name}", {}) for name in _HOOKS]


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run around its call: its own, or those registered for all modules."""
    own = vars(module)
    return any(_OF_ALL) or any(own.get(name) for name in _HOOKS)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a ``forward`` of this object alone stands for that of its class."""
    return "forward" in vars(module)


def dtype_of(network: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of its first floating-point parameter, which its images should have."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), default)


def has_convolutions(network: nn.Module) -> bool:
    """Whether the memory format can matter: some weight is that of a 2-D convolution."""
    return any(p.dim() == 4 for p in network.parameters())


def is_channels_last(network: nn.Module) -> bool:
    """Whether weights of its convolutions are in channels_last order."""
    return any(
        p.dim() == 4
        and not p.is_contiguous()
        and p.is_contiguous(memory_format=torch.channels_last)
        for p in network.parameters()
    )
