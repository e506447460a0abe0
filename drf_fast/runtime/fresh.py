"""A key for noise that nobody named."""

from __future__ import annotations

import torch


def fresh_key() -> torch.Tensor:
    """64 bits of torch's default generator: ``manual_seed`` determines them, processes differ.

    Returns:
        0-dim int64 on the CPU.
    """
    if torch.compiler.is_compiling():
        # Inductor's generator on the CPU has a state of 32 bits, and one of its own for each draw.
        high, low = (torch.randint(2**32, (), dtype=torch.int64, device="cpu") for _ in range(2))
        return (high - 2**31) * 2**32 + low
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")
