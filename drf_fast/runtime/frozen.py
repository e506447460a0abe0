"""A context manager: eval mode and frozen parameters inside a block, all restored after it."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

_LOCK = threading.Lock()
_BLOCKS: Counter[int] = Counter()  # blocks that hold a module or parameter, by its id


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Put ``model`` into eval mode with frozen parameters; restore every module and parameter.

    With frozen parameters a backward pass to the input computes no weight gradients. Blocks may
    overlap, in several threads too: the last one to end restores. A callable that is no
    ``nn.Module`` is left as it is.
    """
    if not isinstance(model, nn.Module):
        yield
    elif torch.compiler.is_dynamo_compiling():
        # A compiled graph computes the requested gradients only, so freezing would save nothing.
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
    else:
        with _LOCK:
            modules = _held(model.modules(), "training")
            parameters = _held(model.parameters(), "requires_grad")
        try:
            _evaluate(model)
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            with _LOCK:
                _train(_released(modules))
                for parameter in _released(parameters):
                    parameter.requires_grad_(True)


def _held(owners: Iterable[Any], flag: str) -> list[Any]:
    """The owners whose ``flag`` is to be restored, by this block or by one around or beside it."""
    # A frozen ScriptModule has no mode.
    held = [owner for owner in owners if getattr(owner, flag, False) or _BLOCKS[id(owner)]]
    _BLOCKS.update(map(id, held))
    return held


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # an exported program has one mode, and is part of the network
        for module in model.modules():
            with contextlib.suppress(NotImplementedError):
                module.eval()
            module.training = False


def _train(modules: list[nn.Module]) -> None:
    """Put these modules, and no others, into training mode."""
    for module in modules:
        if type(module).train is not nn.Module.train:  # it may merge weights in eval mode, as LoRA
            evaluated = [child for child in module.modules() if not child.training]
            module.train()
            for child in evaluated:
                child.training = False
    for module in modules:
        module.training = True


def _released(owners: list[Any]) -> list[Any]:
    """The owners that no other block holds."""
    _BLOCKS.subtract(map(id, owners))
    free = [owner for owner in owners if not _BLOCKS[id(owner)]]
    for owner in free:
        del _BLOCKS[id(owner)]
    return free
