"""Print every operation that one PGD step outside the network dispatches, published and ours.

    python benchmarks/dispatched.py

The step is that of ``test_pgd_step.py``. Counted are the operations that reach a kernel or make a
view, forward and backward; those of the autograd engine itself are not visible at this level.
"""

from __future__ import annotations

from typing import Any

import test_pgd_step
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Writes down the name of each dispatched operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def dispatched(provider: str) -> list[str]:
    """The operations of one step, in order."""
    step = test_pgd_step.pgd_step(provider)
    step()
    with Recorder() as recorder:
        step()
    return recorder.names


def main() -> None:
    torch.manual_seed(0)
    for provider in test_pgd_step.PROVIDERS:
        names = dispatched(provider)
        ours = sum(name.startswith("drf_fast.") for name in names)
        print(f"{provider}: {len(names)} operations, {ours} of drf_fast")
        for name in names:
            print(f"    {name}")


if __name__ == "__main__":
    main()
