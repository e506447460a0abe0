"""What tests of CUDA graphs share: the example's training step, and a watch over a device.

The meta device stands in for a GPU: its tensors have no memory, so an operation that reads a value
fails there. The code above the backends only distinguishes the CPU from other devices.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EXAMPLE = Path(__file__).parents[2] / "examples" / "cuda_graph.py"
B, M, CLASSES = 2, 3, 4


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("cuda_graph_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


class OnOneDevice(TorchDispatchMode):
    """Fails at the first operation that reads or makes a tensor elsewhere than on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        self.names.append(name)
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                raise AssertionError(f"{name} has a tensor on {leaf.device}")
        return result


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    )
