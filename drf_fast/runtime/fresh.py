"""A key for noise that nobody named."""

from __future__ import annotations

import torch
import torch.distributed

# Odd, so that the ranks' multiples of it differ modulo 2^64 (2^64 divided by the golden ratio).
_RANK_STEP = 0x9E3779B97F4A7C15


def fresh_key() -> torch.Tensor:
    """64 bits of torch's default generator, so that ``manual_seed`` determines them.

    The processes of a distributed job get different ones even if all are seeded alike, as training
    scripts seed them to begin with equal weights.

    Returns:
        0-dim int64 on the CPU.
    """
    if torch.compiler.is_compiling():
        # Inductor's generator on the CPU has a state of 32 bits, and one of its own for each draw.
        high, low = (torch.randint(2**32, (), dtype=torch.int64, device="cpu") for _ in range(2))
        key = (high - 2**31) * 2**32 + low
    else:
        key = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return key
    own = torch.distributed.get_rank() * _RANK_STEP % 2**64
    return key ^ (own - 2**64 if own >= 2**63 else own)
