"""Operations with Triton kernels: on CUDA tensors, and on any tensor in Triton's interpreter.

``vote``, the two bounds and pooling have no Triton form: where Triton is asked for, they run as
under ``auto``, so that whole programs run on it. Nothing here imports triton before an operation is
looked up for it: most machines without a GPU have none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# Operation -> module of drf_fast.kernels.
MODULES = {
    "noisy_levels": "noisy_levels",
    "noisy_repeat": "noisy_repeat",
    "noisy_repeat_backward": "noisy_repeat",
    "smooth_ce": "smooth_ce",
    "consistency_loss": "consistency_loss",
    "macer_loss": "macer_loss",
    "adversary_step": "adversary_step",
}
# The first whose language has all that the kernels use; torch 2.6 brings it.
OLDEST = (3, 2)


def why_not(device_type: str) -> str | None:
    """The reason, in one sentence, why no kernel can run on ``device_type``; None if they can."""
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        return (
            f"the kernels need triton {OLDEST[0]}.{OLDEST[1]} or newer, which cannot be imported "
            f"({error}); install a torch for CUDA, which brings it"
        )
    if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) < OLDEST:
        return (
            f"the kernels need triton {OLDEST[0]}.{OLDEST[1]} or newer, got {triton.__version__}; "
            "install a newer torch, which brings it"
        )
    # Not the environment variable: it counts only if it was set before triton was imported.
    if type(tl.sum).__name__ == "InterpretedFunction":
        return None
    if device_type != "cuda":
        return (
            f"kernels run on CUDA tensors, got {device_type} tensors; set TRITON_INTERPRET=1 "
            "before Python starts to run them in Triton's interpreter"
        )
    return _why_no_cuda()


def _why_no_cuda() -> str | None:
    import torch

    if torch.version.cuda is None:
        return "the kernels need a torch built for CUDA, got one without; install such a torch"
    if not torch.cuda.is_available():
        return "the kernels need a CUDA device, torch sees none; check the driver (nvidia-smi)"
    return None


def load(operation: str) -> Callable[..., Any]:
    """The function that launches the kernels of ``operation``; needs ``why_not`` to be None."""
    module = importlib.import_module(f"drf_fast.kernels.{MODULES[operation]}")
    return getattr(module, operation)


@functools.cache
def load_or_fall_back(operation: str) -> Callable[..., Any]:
    """As ``load``, but falls back to the reference once a kernel cannot run here.

    This is known only at its launch, when Triton compiles it, with a C compiler and for the
    installed driver.
    """
    from drf_fast.backends.reference import operations as reference

    launching = importlib.import_module("drf_fast.kernels.launch")

    chosen = load(operation)

    def run(*arguments: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*arguments)
        except launching.KernelUnavailableError as error:
            chosen = getattr(reference, operation)
            warn_once(str(error))
            return chosen(*arguments)

    run.__name__ = operation
    return run


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn that CUDA tensors run on the slower reference backend, once for each reason.

    The reason is the part of ``message`` after the operation's name.
    """
    reason = message.partition(": ")[2]
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"CUDA tensors run on the reference backend: {message}", RuntimeWarning, stacklevel=3
        )


class GraphMemory:
    """The capture stream and memory pool shared by graphs of which one runs at a time."""

    def __init__(self, device: Any, stream: Any = None) -> None:
        import torch

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
    import torch

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
    import numpy as np
    import torch

    of_numpy = repr(np.random.get_state(legacy=False))
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy


def _give_back(pool: Any) -> None:
    """End a failed capture in torch's caching allocator, for the current device.

    Where the driver refuses to end the capture, torch up to 2.11 leaves the allocator in capture
    mode: the pool leaks, and cached memory is never again released when memory runs short.
    """
    import torch

    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # since 2.8; before
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    if end is not None:
        with contextlib.suppress(Exception):  # raises where torch has ended it itself
            end(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
