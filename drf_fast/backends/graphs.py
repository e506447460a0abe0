"""CUDA graphs: capturing launches of the network and of our operations, to be replayed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class GraphMemory:
    """The capture stream and memory pool shared by graphs of which one runs at a time."""

    def __init__(self, device: Any, stream: Any = None) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        # torch shares memory only within a stream, and keeps a cuBLAS workspace per stream.
        self.stream = stream or torch.cuda.Stream(device)


@contextlib.contextmanager
def captured(graph: Any, device: Any, memory: GraphMemory | None = None) -> Iterator[None]:
    """Inside, launches on the device are captured in a ``torch.cuda.CUDAGraph`` and do not run.

    A new stream of the device is used: torch's default capture stream belongs to the device that
    was current at the first capture, and would capture nothing of another device.

    Numbers on the CPU are captured as constants: the caller makes a new graph for new ones. CUDA
    calls of other threads neither fail nor invalidate the capture (mode "thread_local").

    Args:
        memory: shared with other graphs; by default the graph has its own.

    Raises:
        RuntimeError: random numbers were drawn from a global generator of the CPU, which every
            replay would repeat.
    """
    # Imported here, since a source tree that was never installed has no drf_fast.kernels.
    from drf_fast.kernels import scalars  # pyright: ignore[reportMissingImports]

    with (
        scalars.constants(),
        torch.cuda.device(device),
        # Restored on exit: a capture that fails leaves its own stream as the current one.
        torch.cuda.stream(torch.cuda.current_stream(device)),
    ):
        memory = memory or GraphMemory(device)
        random_state = _random_state()
        try:
            with torch.cuda.graph(
                graph,
                pool=memory.pool,
                stream=memory.stream,
                capture_error_mode="thread_local",
            ):
                yield
            if _random_state() != random_state:
                raise RuntimeError(
                    "random numbers are drawn on the CPU, which a CUDA graph would repeat for ever"
                )
        except BaseException:
            _give_back(memory.pool)
            raise


def _random_state() -> tuple[Any, ...]:
    """The states of the CPU's global random generators: torch's, Python's and numpy's."""
    of_numpy = repr(np.random.get_state(legacy=False))
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy


def _give_back(pool: Any) -> None:
    """End a failed capture in torch's caching allocator, for the current device.

    Where the driver refuses to end the capture, torch up to 2.11 leaves the allocator in capture
    mode: the pool leaks, and cached memory is never again released when memory runs short.
    """
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # since 2.8; before
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    if end is not None:
        with contextlib.suppress(Exception):  # raises where torch has ended it itself
            end(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
