"""The environment of a run: versions, threads, device, and the backend with what it runs on."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from drf_fast.backends import triton
from drf_fast.backends.dispatch import current
from drf_fast.backends.native import library
from drf_fast.runtime import processes
from drf_fast.version import __version__


def environment(device: torch.device, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What is recorded with every result, beside its settings; never compared on resume.

    Args:
        left_out: the forms in which the network failed, with the reasons.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "drf_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": sys.platform,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "backend": current(),
        "runs_on": runs_on(device.type, current()),
        **({"left_out": dict(left_out)} if left_out else {}),
    }


def runs_on(device_type: str, backend: str) -> str:
    """What the backend means here for tensors of the device: "C++ core (avx512)", "Triton 3.6.0"...

    Several parts that share the operations are joined by " + "; "reference" where there is none.
    """
    kernels = backend == "triton" or (backend == "auto" and device_type == "cuda")
    parts = []
    if kernels and triton.why_not(device_type) is None:
        parts.append(f"Triton {triton.version()}")
    if backend != "reference":
        if device_type == "cpu" and library.available():
            parts.append(f"C++ core ({library.load().build_info()['isa']})")
        if device_type == "cuda" and library.cuda_why_not() is None:
            parts.append("CUDA core")
    return " + ".join(parts) or "reference"
