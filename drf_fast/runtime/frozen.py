"""A context manager: eval mode and frozen parameters inside a block, all restored after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Put ``model`` into eval mode with frozen parameters; restore every module and parameter.

    With frozen parameters a backward pass to the input computes no weight gradients. A callable
    that is no ``nn.Module`` is left as it is.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    # A compiled graph computes the requested gradients only, so freezing would save nothing.
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
