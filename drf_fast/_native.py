"""The compiled extensions: finding them, and the only place with addresses, streams and threads.

``drf_fast._C`` and ``drf_fast._CUDA`` take addresses and sizes and cannot check them, so all that
memory safety rests on (dtype, layout, shape, device) is checked here before each call.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before the extensions: they must bind to the OpenMP runtime that torch brings

import drf_fast

_FUNCTIONS = {
    "_C": ("vote", "clopper_pearson_lower", "certified_radius", "build_info"),
    "_CUDA": ("vote", "why_not"),
}
_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
# Work below which waking another thread costs more than it saves (some 20 microseconds).
_LOGITS_PER_THREAD = 32768
_BOUNDS_PER_THREAD = 32

_FOLDER = Path(__file__).parent
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --------------------------------------------------------------------------------------- loading


@functools.cache
def build_record() -> dict[str, Any]:
    """What setup.py recorded of each part ({} in a source tree that was never installed)."""
    try:
        return json.loads((_FOLDER / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _why_missing(name: str) -> str:
    expected = sysconfig.get_config_var("EXT_SUFFIX")
    others = sorted(_FOLDER.glob(f"{name}.*"))
    if others:
        return (
            f"drf_fast.{name} was built for another Python: expected {name}{expected}, got "
            f"{others[0].name}; reinstall drf_fast with this Python"
        )
    part = build_record().get("parts", {}).get(f"drf_fast.{name}", {})
    if part.get("reason"):
        return f"drf_fast.{name} was not built: {part['reason']}"
    return (
        f"drf_fast.{name} was not built: expected an installed drf_fast, got a source tree; run "
        "'pip install .' or 'pip install -e .' in it"
    )


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """The extension, or one sentence why it cannot be used."""
    try:
        module = importlib.import_module(f"drf_fast.{name}")
    except ModuleNotFoundError:
        return None, _why_missing(name)
    except Exception as error:  # a missing library or symbol, or a broken file: never fatal
        return None, (
            f"drf_fast.{name} was built but does not load here ({error}); reinstall drf_fast on "
            "this machine"
        )
    built_for = build_record().get("version")
    missing = [function for function in _FUNCTIONS[name] if not hasattr(module, function)]
    if missing or built_for not in (None, drf_fast.__version__):
        return None, (
            f"drf_fast.{name} is from another version: expected {drf_fast.__version__} with "
            f"{', '.join(_FUNCTIONS[name])}, got {built_for or 'an unknown one'}"
            f"{' without ' + ', '.join(missing) if missing else ''}; reinstall drf_fast"
        )
    return module, None


def why_not() -> str | None:
    """One sentence why the C++ core cannot be used, None when it can."""
    return _load("_C")[1]


def available() -> bool:
    """Whether the C++ core can be used."""
    return why_not() is None


def load() -> ModuleType:
    """The C++ core.

    Raises:
        RuntimeError: it cannot be used; the message says why.
    """
    module, reason = _load("_C")
    if module is None:
        raise RuntimeError(f"{reason}; DRF_FAST_BACKEND=auto works without it")
    return module


@functools.cache
def cuda_why_not() -> str | None:
    """One sentence why the CUDA core cannot be used, None when it can.

    Asks the driver, so a process that forks workers should not call it before there are CUDA
    tensors.
    """
    module, reason = _load("_CUDA")
    if module is None:
        return reason
    if torch.version.cuda is None:
        return "drf_fast._CUDA needs a torch built for CUDA, got one without; install such a torch"
    if not torch.cuda.is_available():
        return "drf_fast._CUDA needs a CUDA device, torch sees none; check the driver (nvidia-smi)"
    return module.why_not() or None


def cuda_available() -> bool:
    """Whether the CUDA core can be used: built, loadable, and accepted by the driver."""
    return cuda_why_not() is None


def load_cuda() -> ModuleType:
    """The CUDA core.

    Raises:
        RuntimeError: it cannot be used; the message says why.
    """
    reason = cuda_why_not()
    module = _load("_CUDA")[0]
    if module is None or reason is not None:
        raise RuntimeError(f"{reason}; DRF_FAST_BACKEND=auto works without it")
    return module


# --------------------------------------------------------------------------------------- calling


def threads_for(work: int, per_thread: int) -> int:
    """How many OpenMP threads ``work`` is worth, at most torch's own number.

    A forked child gets one: the runtime's worker threads stayed in the parent, and a parallel
    region would wait for them for ever.
    """
    if _forked:
        return 1
    return max(1, min(torch.get_num_threads(), work // per_thread))


def _check_vote(logits: torch.Tensor, counts: torch.Tensor, device: str) -> None:
    if logits.device != counts.device or logits.device.type != device:
        raise ValueError(
            f"vote: expected logits and counts on one {device} device, got {logits.device} and "
            f"{counts.device}; move them"
        )
    if logits.dtype not in _DTYPES or counts.dtype != torch.int64:
        raise TypeError(
            f"vote: expected logits of {', '.join(_DTYPES.values())} and counts of int64, got "
            f"{logits.dtype} and {counts.dtype}; convert them"
        )
    if (
        logits.dim() != 2
        or counts.dim() != 2
        or not counts.is_contiguous()
        or logits.shape[1] != counts.shape[1]
        or logits.shape[1] == 0
        or logits.shape[0] % max(counts.shape[0], 1)
        or (counts.shape[0] == 0 and logits.shape[0] > 0)
    ):
        raise ValueError(
            "vote: expected logits (images*m, K) and contiguous counts (images, K) with K at least "
            f"1, got {tuple(logits.shape)} and {tuple(counts.shape)} with strides "
            f"{counts.stride()}; reshape them"
        )


def vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the argmax of each row of logits (images*m, K) to counts (images, K), on the CPU."""
    _check_vote(logits, counts, "cpu")
    rows, classes = logits.shape
    logits = logits.contiguous()
    load().vote(
        logits.data_ptr(),
        _DTYPES[logits.dtype],
        rows,
        classes,
        counts.data_ptr(),
        counts.shape[0],
        threads_for(rows * classes, _LOGITS_PER_THREAD),
    )


def cuda_vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """As ``vote``, on the tensors' CUDA device and its current stream, without waiting for it."""
    _check_vote(logits, counts, "cuda")
    rows, classes = logits.shape
    logits = logits.contiguous()
    load_cuda().vote(
        logits.data_ptr(),
        _DTYPES[logits.dtype],
        rows,
        classes,
        counts.data_ptr(),
        counts.shape[0],
        logits.device.index,
        torch.cuda.current_stream(logits.device).cuda_stream,
    )


def clopper_pearson_lower(
    successes: torch.Tensor, trials: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The lower confidence bound of each (successes, trials); float64 of their shape."""
    return _bound("clopper_pearson_lower", successes, trials, [alpha])


def certified_radius(
    successes: torch.Tensor, trials: torch.Tensor, sigma: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The certified radius of each (successes, trials); float64 of their shape."""
    return _bound("certified_radius", successes, trials, [sigma, alpha])


def _bound(
    name: str, successes: torch.Tensor, trials: torch.Tensor, scalars: Sequence[torch.Tensor]
) -> torch.Tensor:
    if (
        successes.device.type != "cpu"
        or trials.device.type != "cpu"
        or successes.dtype != torch.int64
        or trials.dtype != torch.int64
        or successes.shape != trials.shape
    ):
        raise ValueError(
            f"{name}: expected successes and trials of one shape, int64, on the CPU, got "
            f"{tuple(successes.shape)} {successes.dtype} on {successes.device} and "
            f"{tuple(trials.shape)} {trials.dtype} on {trials.device}; convert them"
        )
    successes, trials = successes.contiguous(), trials.contiguous()
    out = torch.empty(successes.shape, dtype=torch.float64)
    size = successes.numel()
    getattr(load(), name)(
        successes.data_ptr(),
        trials.data_ptr(),
        *(scalar.item() for scalar in scalars),
        out.data_ptr(),
        size,
        threads_for(size, _BOUNDS_PER_THREAD),
    )
    return out
