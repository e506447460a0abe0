"""Borrowing a network: eval mode and frozen parameters inside a block, all restored after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Put ``model`` into eval mode with frozen parameters; restore every module and parameter.

    Frozen parameters keep a backward pass to the input from computing weight gradients. A callable
    that is no ``nn.Module`` has nothing to freeze.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    # A compiled graph computes only the gradients that are asked for: nothing to save there.
    trainable = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and not torch.compiler.is_dynamo_compiling()
    ]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
