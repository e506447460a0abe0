"""The choice of a backend for each operation: reference (pure torch), native (C++, CUDA), triton.

``auto`` takes the fastest implementation that this installation has for the tensors' device, and
falls back to the reference, so that it never fails because a compiled part is missing. The
environment variable ``DRF_FAST_BACKEND``, read at the first operation, or ``use`` choose another
one. These are strict: an operation that the chosen backend does not have is an error. One exception
lets whole programs run on ``triton``: counting votes, the two bounds and pooling have no Triton
kernels and run as under ``auto``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from drf_fast.errors import InputError, RunError

NAMES = ("auto", "reference", "native", "triton")

_chosen: ContextVar[str | None] = ContextVar("chosen backend", default=None)
# (operation, device type, choice) -> its implementation; None is the choice of the environment.
_cache: dict[tuple[str, str, str | None], Callable[..., Any]] = {}
_TLS_KEY = "drf_fast.backend"


def _check_name(name: str, source: str) -> str:
    if name not in NAMES:
        raise InputError(
            f"{source} names an unknown backend: expected one of {', '.join(NAMES)}, got {name!r}"
        )
    return name


def current() -> str:
    """The backend in force: one of ``NAMES``.

    Raises:
        ValueError: ``DRF_FAST_BACKEND`` is none of them.
    """
    chosen = _choice()
    if chosen is None:
        return _check_name(os.environ.get("DRF_FAST_BACKEND", "auto"), "DRF_FAST_BACKEND")
    return chosen


def _choice() -> str | None:
    """The backend of the innermost ``use`` around this call, None where there is none.

    Autograd runs the backward of CUDA tensors in threads of its own, which do not inherit Python's
    context variables, but torch's thread-local objects of the thread that called ``backward``.
    """
    chosen = _chosen.get()
    if chosen is None and torch._C._current_graph_task_id() != -1:
        return torch._C._get_obj_in_tls(_TLS_KEY) if torch._C._is_key_in_tls(_TLS_KEY) else None
    return chosen


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block on the backend ``name``.

    The choice belongs to this thread or asynchronous task, and to each ``backward`` that is called
    inside the block; other threads keep theirs. Code that ``torch.compile`` has already compiled
    calls the operations by name and follows the choice too.

    Raises:
        ValueError: ``name`` is not one of ``NAMES``.
    """
    interned = NAMES[NAMES.index(_check_name(name, "use()"))]
    token = _chosen.set(interned)
    _publish_to_autograd_threads(interned)
    try:
        yield
    finally:
        _chosen.reset(token)
        _publish_to_autograd_threads(_chosen.get())


def _publish_to_autograd_threads(name: str | None) -> None:
    """Make ``name``, an element of ``NAMES`` or None, visible to ``_choice`` in these threads."""
    # torch 2.6 steals a reference and would free the name in the end. Later versions do not; the
    # extra reference then does no harm to objects that live for ever anyway.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(name))
    torch._C._stash_obj_in_tls(_TLS_KEY, name)


def implementation(operation: str, device_type: str) -> Callable[..., Any]:
    """The function that runs ``operation`` on tensors of ``device_type`` ("cpu", "cuda", ...).

    Raises:
        RuntimeError: the chosen backend does not have the operation in this installation.
    """
    key = (operation, device_type, _choice())
    if key not in _cache:
        _cache[key] = _find(operation, device_type, current())
    return _cache[key]


def _find(operation: str, device_type: str, backend: str) -> Callable[..., Any]:
    from drf_fast.backends import triton
    from drf_fast.backends.fallback import warn_once
    from drf_fast.backends.native import cpu, cuda
    from drf_fast.backends.reference import operations as reference

    fallback = getattr(reference, operation)
    if backend == "reference":
        return fallback
    wants_kernel = backend == "triton" or (backend == "auto" and device_type == "cuda")
    if wants_kernel and operation in triton.MODULES:
        reason = triton.why_not(device_type)
        if backend == "triton":
            if reason is not None:
                raise RunError(f"the backend 'triton' cannot run {operation}: {reason}")
            return triton.load(operation)
        if reason is None:
            return triton.load_or_fall_back(operation)
        warn_once(f"{operation}: {reason}")
        return fallback
    module = {"cpu": cpu, "cuda": cuda}.get(device_type)
    if module is not None and operation in module.OPERATIONS:
        return getattr(module, operation)
    if backend == "native":
        if device_type == "cpu" or (device_type == "cuda" and operation in cuda.IMPLEMENTED):
            raise RunError(
                f"the backend 'native' was asked for, but {operation} has no native implementation "
                f"for {device_type} tensors in this installation; use 'auto' or 'reference', and "
                "see 'drf-fast doctor' for what is built"
            )
        raise RunError(
            f"the backend 'native' was asked for, but no installation has a native {operation} for "
            f"{device_type} tensors; use 'auto', the fastest that there is for them"
        )
    return fallback
