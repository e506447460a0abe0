"""Tests of kernels on CPU tensors that execute the PTX compiled by Triton: see ``ptx``.

With ``DRF_FAST_TEST_KERNELS=ptx`` in the environment a session compiles each launch for sm_90, as
Triton's JIT would, and executes the PTX that ptxas would be given.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import on_gpu
import ptx
import torch

CHOSEN = os.environ.get("DRF_FAST_TEST_KERNELS") == "ptx"
CAPABILITY = 90
_LARGEST = 227 * 1024  # shared memory of a program on sm_90
_programs: dict[Any, tuple[ptx.Program, int]] = {}
counts: list[tuple[str, ptx.Counts]] = []  # of each launch, by the kernel's name
_faults: list[str] = []  # names of the kernels that raised a FaultError


def _compiled(launch: Any) -> tuple[ptx.Program, int]:
    """The PTX of a launch and the bytes of shared memory of its programs."""
    import sass
    import triton
    from triton.backends.compiler import GPUTarget

    from drf_fast.kernels.launch import compiler_options

    source = sass.source(launch)
    key = source.hash(), launch.num_warps, launch.registers
    if key not in _programs:
        # Through ptxas too, whose output is not used here: other sessions share Triton's cache, so
        # its entries must be complete.
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", CAPABILITY, 32),
            options=compiler_options(launch.num_warps, launch.registers),
        )
        _programs[key] = ptx.Program(compiled.asm["ptx"]), compiled.metadata.shared
    return _programs[key]


def execute(launch: Any) -> ptx.Counts:
    """Run a launch whose tensors lie in the CPU's memory."""
    import sass

    program, shared = _compiled(launch)
    if shared > _LARGEST:
        raise RuntimeError(f"OutOfResources: {shared} bytes of shared memory")
    memory, storages, values = ptx.Memory(), dict[int, int](), []
    types, _, _ = sass.signature(launch)
    names = [p.name for p in launch.kernel.params if p.name not in launch.constants]
    for name, value in zip(names, launch.arguments, strict=True):
        if types[name] == "constexpr":
            continue
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in storages:
                raw = ctypes.c_uint8 * storage.nbytes()
                view = np.frombuffer(raw.from_address(storage.data_ptr() or 1), np.uint8)
                storages[storage._cdata] = memory.add(view, name)
            value = storages[storage._cdata] + value.storage_offset() * value.element_size()
        values.append(int(value))
    values += [0] * (len(program.parameters) - len(values))  # Triton's own scratch memory: none
    parameters = dict(zip(program.parameters, values, strict=True))
    try:
        found = ptx.execute(program, launch.programs, launch.num_warps, parameters, memory, shared)
    except ptx.FaultError:
        _faults.append(launch.kernel.fn.__name__)
        raise
    counts.append((launch.kernel.fn.__name__, found))
    return found


def tell() -> None:
    """Add what this session executed to the file named in DRF_FAST_TEST_COUNTS."""
    import triton

    if path := os.environ.get("DRF_FAST_TEST_COUNTS"):
        record = {
            "triton": triton.__version__,
            "launches": len(counts),
            "kernels": sorted({name for name, _ in counts}),
            "faults": len(_faults),
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """Inside, the backend "triton" takes CPU tensors and executes PTX."""
    import phantom
    from triton.runtime.jit import JITFunction

    from drf_fast.backends import triton
    from drf_fast.kernels.launch import Launch

    def run(self: Any, *arguments: Any, grid: Any = None, warmup: bool = False, **options: Any):
        warps, registers = options.pop("num_warps", 4), options.pop("maxnreg", None)
        options.pop("enable_fp_fusion", None)
        execute(Launch(self, grid[0], arguments, options, warps, registers))

    with (
        mock.patch.object(phantom, "watch", on_gpu.not_here),
        mock.patch.object(phantom, "run", on_gpu.not_here),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(triton, "why_not", lambda device_type: None),
    ):
        yield
