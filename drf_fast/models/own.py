"""A network of the user's own: ``--arch package.module:factory``.

The factory, a function or a class, is called as ``factory(num_classes=K)`` and returns an
``nn.Module`` that maps images (B, C, H, W) in [0, 1] to logits (B, K), as
``torchvision.models:resnet18`` does.

Building it runs code. So the name is taken only from the command line or from Python, never from a
file: a checkpoint or a TOML file from elsewhere must not be able to run code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from drf_fast.errors import InputError
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.modules import dtype_of
from drf_fast.runtime.text import one_line

_CALL = "expected a function or class that is called with num_classes=K and returns an nn.Module"


def build(arch: str, num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Import and call the factory ``arch``; the working folder is searched, as with ``python -m``.

    Raises:
        InputError: no such module or attribute, code that fails, no ``nn.Module``, or one that does
            not map images of ``image_shape`` to ``num_classes`` logits.
    """
    with _working_folder_on_path():  # around the call too, since a factory may import
        return _build(arch, num_classes, image_shape)


@contextlib.contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """The working folder is on ``sys.path`` inside the block, as with ``python -m``, not after."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added:
            with contextlib.suppress(ValueError):  # the imported module may have removed it
                sys.path.remove(folder)


def _build(arch: str, num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    factory = _find(arch)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise InputError(f"--arch {arch}: {_CALL}, got {_type_of(factory)}; name such a function")
    try:
        network = factory(num_classes=num_classes)
    except Exception as error:
        raise InputError(
            f"--arch {arch} failed: {_CALL}, got {one_line(error)}; correct it, or wrap it in a "
            "function of that form"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"--arch {arch}: {_CALL}, got {_type_of(network)}; return the network")
    _try(network, arch, num_classes, image_shape)
    return network


def _find(arch: str) -> Any:
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)", arch)
    if match is None:
        raise InputError(
            f"--arch must be a name, or package.module:factory for a network of your own, got "
            f"{arch!r}"
        )
    module_name, attributes = match[1], match[2]
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise InputError(
                f"--arch {arch}: expected a module {module_name} in the current folder or "
                f"installed, got none ({one_line(error)}); check the name and the folder"
            ) from error
        raise InputError(
            f"--arch {arch}: expected {module_name} to be imported, got {one_line(error)}; "
            "correct that module (what a script does goes below 'if __name__ == \"__main__\"')"
        ) from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise InputError(
                f"--arch {arch}: expected {attribute!r} in {_source_of(found)}, got no such name; "
                "check the spelling"
            )
        found = getattr(found, attribute)
    return found


def _try(network: nn.Module, arch: str, num_classes: int, image_shape: tuple[int, ...]) -> None:
    """Run two black images, without side effects: no gradient, statistics or random numbers."""
    dtype = dtype_of(network, torch.float32)
    images = torch.zeros(2, *image_shape, dtype=dtype)
    expected = f"expected images {tuple(images.shape)} to become logits {(2, num_classes)}"
    training = [module for module in network.modules() if module.training]
    try:  # not runtime.frozen, which fails for lazy modules before their first forward pass
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = logits_of(network.eval()(images))
    except Exception as error:
        raise InputError(
            f"--arch {arch}: {expected}, got {one_line(error)}; correct the network or choose "
            "other data"
        ) from error
    for module in training:
        module.training = True
    if tuple(logits.shape) != (2, num_classes):
        shape = tuple(logits.shape)
        raise InputError(
            f"--arch {arch}: {expected}, got {shape}; correct the network's last layer"
        )


def _type_of(value: Any) -> str:
    name = type(value).__name__
    return f"an instance of {name}" if isinstance(value, nn.Module) else f"a value of type {name}"


def _source_of(value: Any) -> str:
    return getattr(value, "__file__", None) or getattr(value, "__name__", None) or _type_of(value)
