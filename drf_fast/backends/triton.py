"""Operations that a Triton kernel runs: on CUDA tensors, and on any tensor in Triton's interpreter.

``vote``, the two bounds and pooling have no Triton form: where Triton is asked for, they run as
under ``auto``, so that whole programs run on it. Nothing here imports triton before an operation is
looked up for it: most machines without a GPU have none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
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
    """One sentence why kernels cannot run on tensors of ``device_type``, None when they can."""
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
    """As ``load``, but from the first kernel that cannot run here on it is the reference.

    Whether a kernel runs shows only at its launch: Triton compiles there, with a C compiler and
    for the driver at hand.
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
    """Say why CUDA tensors run on the reference backend: the speed that is lost should be known.

    What follows the operation's name is the reason, and each reason is told once.
    """
    reason = message.partition(": ")[2]
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"CUDA tensors run on the reference backend: {message}", RuntimeWarning, stacklevel=3
        )


class GraphMemory:
    """Where graphs are captured of which one runs at a time: they share a stream and memory."""

    def __init__(self, device: Any, stream: Any = None) -> None:
        import torch

        self.pool = torch.cuda.graph_pool_handle()
        # torch shares memory within a stream alone, and keeps a workspace of cuBLAS for each.
        self.stream = stream or torch.cuda.Stream(device)


@contextlib.contextmanager
def captured(graph: Any, device: Any, memory: GraphMemory | None = None) -> Iterator[None]:
    """Inside, launches on the device become part of a ``torch.cuda.CUDAGraph`` and do not run.

    torch would capture on one stream for all graphs, of the device that was current at the first:
    what runs on another device then is in no graph, and a replay does nothing.

    Numbers on the CPU are captured as constants: the caller makes a new graph for new ones. Other
    threads are left alone: what they ask the device for meanwhile neither fails nor ends a capture.

    Args:
        memory: of graphs that share theirs; None is a graph's own.
    """
    import torch

    # Not above: a source tree that was never installed has no drf_fast.kernels.
    from drf_fast.kernels import scalars  # pyright: ignore[reportMissingImports]

    with (
        scalars.constants(),
        torch.cuda.device(device),
        # Put back here: a capture that fails leaves its own stream behind as the current one.
        torch.cuda.stream(torch.cuda.current_stream(device)),
    ):
        memory = memory or GraphMemory(device)
        try:
            with torch.cuda.graph(
                graph,
                pool=memory.pool,
                stream=memory.stream,
                capture_error_mode="thread_local",
            ):
                yield
        except BaseException:
            _give_back(memory.pool)
            raise


def _give_back(pool: Any) -> None:
    """End a failed capture for torch's allocator, on the current device.

    Up to version 2.11 torch does not, where the device refuses to end the capture: it keeps the
    memory, and never again gives back what it has cached where some is lacking.
    """
    import torch

    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # from 2.8; before
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    if end is not None:
        with contextlib.suppress(Exception):  # an error: torch has ended it
            end(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
