"""Operations with Triton kernels: on CUDA tensors, and on any tensor in Triton's interpreter.

``vote``, the two bounds and pooling have no Triton form: where Triton is asked for, they run as
under ``auto``, so that whole programs run on it. Nothing here imports triton before an operation is
looked up for it: most machines without a GPU have none.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch

from drf_fast.backends.fallback import warn_once

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


def version() -> str:
    """Triton's version; needs ``why_not`` to be None."""
    return importlib.import_module("triton").__version__


def why_not(device_type: str) -> str | None:
    """The reason, in one sentence, why no kernel can run on ``device_type``; None if they can."""
    if importlib.util.find_spec("drf_fast.kernels") is None:
        return (
            "the kernels are no part of a source tree where nothing is installed; install it: pip "
            "install -e ."
        )
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
    installed driver. A kernel that is too large for some arguments stays for those of other dtypes
    and shapes.
    """
    from drf_fast.backends.reference import operations as reference

    launching = importlib.import_module("drf_fast.kernels.launch")
    kernels, plain = load(operation), getattr(reference, operation)
    too_large: set[tuple[Any, ...]] = set()

    def kinds(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple((a.dtype, a.shape) for a in arguments if isinstance(a, torch.Tensor))

    def run(*arguments: Any) -> Any:
        nonlocal kernels
        if too_large and kinds(arguments) in too_large:
            return plain(*arguments)
        try:
            return kernels(*arguments)
        except launching.KernelTooLargeError as error:
            too_large.add(kinds(arguments))
            warn_once(str(error))
        except launching.KernelUnavailableError as error:
            kernels = plain
            warn_once(str(error))
        return plain(*arguments)

    run.__name__ = operation
    return run
