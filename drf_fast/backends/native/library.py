"""Loading the compiled extensions, which the other modules of this package call.

``drf_fast._C`` and ``drf_fast._CUDA`` take addresses and sizes and cannot check them, so this
package checks before each call what memory safety rests on: dtype, layout, shape, device.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before the extensions: they must bind to the OpenMP runtime that torch brings

from drf_fast.errors import InputError
from drf_fast.runtime.forking import is_forked
from drf_fast.version import __version__

_FUNCTIONS = {
    "_C": (
        "noisy_levels",
        "noisy_repeat",
        "noisy_repeat_backward",
        "smooth_ce",
        "consistency_loss",
        "macer_loss",
        "adversary_step",
        "max_pool_relu",
        "max_pool_relu_backward",
        "pooled_image_gradient",
        "vote",
        "clopper_pearson_lower",
        "certified_radius",
        "use_isa",
        "build_info",
    ),
    "_CUDA": ("vote", "clopper_pearson_lower", "certified_radius", "architectures", "why_not"),
}
_FOLDER = Path(__file__).parents[2]


# --------------------------------------------------------------------------------------- loading


@functools.cache
def build_record() -> dict[str, Any]:
    """What setup.py recorded about each extension; {} in a source tree that was never installed."""
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
        f"drf_fast.{name} was not built: expected an installed drf_fast, got a source tree; start "
        "Python in another folder, or run 'pip install -e .' in it"
    )


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """(the extension, None), or (None, the reason in one sentence why it cannot be used)."""
    try:
        module = importlib.import_module(f"drf_fast.{name}")
    except ModuleNotFoundError:
        reason = _why_missing(name)
        if name == "_C" and "got a source tree" in reason:  # once: this function is cached
            print(
                f"drf_fast runs from the source tree {_FOLDER.parent}, where nothing is built, on "
                "plain PyTorch; for an installed drf_fast start in another folder, or run 'pip "
                "install -e .' here",
                file=sys.stderr,
            )
        return None, reason
    except Exception as error:  # a missing library or symbol, or a broken file: never fatal
        return None, _told(
            name,
            f"drf_fast.{name} was built but does not load here ({error}); reinstall drf_fast on "
            "this machine",
        )
    built_for = build_record().get("version")
    missing = [function for function in _FUNCTIONS[name] if not hasattr(module, function)]
    if missing or built_for not in (None, __version__):
        return None, _told(
            name,
            f"drf_fast.{name} is from another version: expected {__version__} with "
            f"{', '.join(_FUNCTIONS[name])}, got {built_for or 'an unknown one'}"
            f"{' without ' + ', '.join(missing) if missing else ''}; reinstall drf_fast",
        )
    if name == "_C":
        try:
            module.use_isa(os.environ.get("DRF_FAST_ISA", ""))
        except ValueError as error:
            raise InputError(str(error)) from None
    return module, None


def _told(name: str, reason: str) -> str:
    """``reason``, printed if it makes the CPU slow; once, as loading is cached."""
    if name == "_C":  # of CUDA the dispatch warns
        print(f"drf_fast runs on plain PyTorch, several times slower: {reason}", file=sys.stderr)
    return reason


def why_not() -> str | None:
    """The reason, in one sentence, why the C++ core cannot be used; None if it can."""
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
    """The reason, in one sentence, why the CUDA core cannot be used; None if it can.

    Initialises CUDA, so a process that forks workers should not call it before it uses CUDA
    tensors.
    """
    module, reason = _load("_CUDA")
    if module is None:
        return reason
    if torch.version.cuda is None:
        return "drf_fast._CUDA needs a torch built for CUDA, got one without; install such a torch"
    if not torch.cuda.is_available():
        return "drf_fast._CUDA needs a CUDA device, torch sees none; check the driver (nvidia-smi)"
    return module.why_not() or _why_no_device(module.architectures())


def _why_no_device(architectures: list[int]) -> str | None:
    """A sentence that names a visible device for which the CUDA core has no code; None if none.

    Machine code runs on devices of the same major and the same or a newer minor version; the PTX of
    the last architecture runs on all newer devices.
    """
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        here = 10 * major + minor
        known = any(arch // 10 == major and arch <= here for arch in architectures)
        if not known and here < architectures[-1]:
            return (
                "drf_fast._CUDA has no code for every visible device: expected sm_"
                f"{', sm_'.join(map(str, architectures))} or newer, got sm_{here} as device "
                f"{index}; reinstall drf_fast with DRF_FAST_CUDA_ARCHS={here} and a CUDA toolkit "
                "that knows it, or hide the device with CUDA_VISIBLE_DEVICES"
            )
    return None


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
    """The number of OpenMP threads for ``work`` elements, at most torch's number.

    It is 1 in a forked child: the worker threads exist in the parent only, and a parallel region
    would wait for them for ever.
    """
    if is_forked() or work < 2 * per_thread:
        return 1
    return min(torch.get_num_threads(), work // per_thread)
