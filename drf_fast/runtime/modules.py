"""What changes the call of a module without changing its class."""

from __future__ import annotations

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
