"""Launching Triton kernels: grids, device, errors; and recording of launches.

A launch is described before it runs, so that tests can find out what an operation would launch:
``recording`` collects the launches instead of running them, and tensors on the ``meta`` device,
which have sizes but no memory, suffice as arguments.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from drf_fast.errors import RunError

# CUDA's limit of the first grid dimension, the only one in use here.
MAX_PROGRAMS = 2**31 - 1

_TOO_LARGE = r"OutOfResources"
# Errors of Triton, its compilers and the driver where a kernel cannot run at all, and the remedy:
# patterns for the error's classes and text. All else (an illegal address, an exception in the
# interpreter) is a bug and is raised as it is.
_ADVICE = (
    (
        r"unsupported toolchain|driver version is insufficient|display driver|image is invalid",
        "the NVIDIA driver is too old for this triton; update the driver",
    ),
    (
        r"no kernel image|PTXASError|CompilationError",
        "this triton cannot compile it for this GPU; install the triton that your torch asks for",
    ),
    (
        r"C compiler|CalledProcessError|FileNotFoundError",
        "Triton builds its launcher with a C compiler and Python's headers; install gcc and "
        "python3-dev, or name a compiler in CC",
    ),
    (r"OSError", "Triton cannot write its cache; name a folder for it in TRITON_CACHE_DIR"),
    (
        r"libcuda|active drivers",
        "Triton does not find the NVIDIA driver's libcuda.so.1; install the driver, or name its "
        "folder in TRITON_LIBCUDA_PATH",
    ),
    (r"Cannot find ptxas", "triton's own ptxas is missing; reinstall triton"),
    (_TOO_LARGE, "this GPU has too little shared memory or too few registers for it"),
)


class KernelUnavailableError(RunError):
    """A kernel cannot run in this installation or on this GPU, whatever its arguments."""


class KernelTooLargeError(KernelUnavailableError):
    """A kernel cannot run with arguments of these shapes and dtypes."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``programs`` instances of ``kernel`` with ``num_warps`` warps each.

    ``registers``: limit of a thread (maxnreg). Without it ptxas spills a few registers of some
    kernels, to raise the occupancy by one program a multiprocessor.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    registers: int | None = None


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded launches", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect the launches inside the ``with`` block, in order, and run none of them."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any,
    programs: int,
    *arguments: Any,
    num_warps: int = 4,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Run ``programs`` instances of a ``triton.jit`` kernel on the device of its first tensor.

    Raises:
        ValueError: more programs than a grid can have.
        KernelUnavailableError: Triton, its compilers or the driver cannot run this kernel here.
        torch.OutOfMemoryError: the GPU has no memory left for the kernel's code.
    """
    name = kernel.fn.__name__
    if programs > MAX_PROGRAMS:
        raise ValueError(
            f"{name}: a launch has at most {MAX_PROGRAMS} programs, got {programs}; "
            "use a smaller batch"
        )
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(Launch(kernel, programs, arguments, constants, num_warps, registers))
        return
    device = next(value.device for value in arguments if isinstance(value, torch.Tensor))
    try:
        with current(device):
            kernel[(programs,)](*arguments, **compiler_options(num_warps, registers), **constants)
    except Exception as error:
        explained = _explained(name, error)
        if explained is None:
            raise
        raise explained from error


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a tensor's device the current one; a no-op if it is already."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else contextlib.nullcontext()


def compiler_options(num_warps: int, registers: int | None) -> dict[str, Any]:
    """The options of Triton's compiler for a launch."""
    limit = {} if registers is None else {"maxnreg": registers}
    # Contraction into fused multiply-adds would change the bits of the noise.
    return {"num_warps": num_warps, "enable_fp_fusion": False, **limit}


def _explained(name: str, error: Exception) -> Exception | None:
    """The error in one sentence; None for errors that do not come from this installation."""
    text = re.sub(r"\s+", " ", str(error))[:300]
    if text.startswith("Triton Error") and "out of memory" in text:
        # No fallback: the reference backend needs more memory than the kernel.
        return torch.OutOfMemoryError(
            f"{name}: the GPU has no memory left to load this kernel ({text}); use a smaller batch"
        )
    classes = " ".join(kind.__name__ for kind in type(error).__mro__)
    for pattern, advice in _ADVICE:
        if "InterpreterError" not in classes and re.search(pattern, f"{classes}: {text}"):
            reason = f"{type(error).__name__}: {text}"
            kind = KernelTooLargeError if pattern == _TOO_LARGE else KernelUnavailableError
            return kind(f"{name}: this Triton kernel cannot run here ({reason}); {advice}")
    return None
