"""Which code runs an operation: reference (pure torch), native (C++, CUDA) or triton.

``auto`` takes the fastest implementation that this installation has for the device at hand and
falls back to the reference, so that it never fails because a compiled part is missing. The
environment variable ``DRF_FAST_BACKEND``, read at the first operation, or ``use`` choose another
one. These are strict: an operation that the chosen backend does not have is an error. One exception
lets whole programs run on ``triton``: counting votes, the two bounds and pooling have no Triton
form and run as under ``auto``.
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
# (operation, device type, choice) -> what runs it; the choice None is the environment's.
_table: dict[tuple[str, str, str | None], Callable[..., Any]] = {}
_TLS_KEY = "drf_fast.backend"


def _known(name: str, source: str) -> str:
    if name not in NAMES:
        raise InputError(
            f"{source} names an unknown backend: expected one of {', '.join(NAMES)}, got {name!r}"
        )
    return name


def current() -> str:
    """The backend in force: one of ``NAMES``.

    Raises:
        ValueError: ``DRF_FAST_BACKEND`` holds another word.
    """
    chosen = _choice()
    if chosen is None:
        return _known(os.environ.get("DRF_FAST_BACKEND", "auto"), "DRF_FAST_BACKEND")
    return chosen


def _choice() -> str | None:
    """The choice of the innermost ``use`` around this call, None where there is none.

    Autograd runs the backward of CUDA tensors in threads of its own, which see no context of
    Python's. torch hands them the thread-local objects of the thread that called ``backward``.
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
    own = NAMES[NAMES.index(_known(name, "use()"))]
    token = _chosen.set(own)
    _stash(own)
    try:
        yield
    finally:
        _chosen.reset(token)
        _stash(_chosen.get())


def _stash(name: str | None) -> None:
    """For ``_choice`` in torch's threads: one of ``NAMES`` itself, or None."""
    # torch 2.6 takes a reference that it was not given, and would free the name in the end. Where
    # later versions count right this one is too many, of objects that live for ever anyway.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(name))
    torch._C._stash_obj_in_tls(_TLS_KEY, name)


def implementation(operation: str, device_type: str) -> Callable[..., Any]:
    """The function that runs ``operation`` on tensors of ``device_type`` ("cpu", "cuda", ...).

    Raises:
        RuntimeError: the chosen backend does not have the operation in this installation.
    """
    key = (operation, device_type, _choice())
    if key not in _table:
        _table[key] = _find(operation, device_type, current())
    return _table[key]


def _find(operation: str, device_type: str, backend: str) -> Callable[..., Any]:
    from drf_fast.backends import triton
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
        triton.warn_once(f"{operation}: {reason}")
        return fallback
    module = {"cpu": cpu, "cuda": cuda}.get(device_type)
    if module is not None and operation in module.OPERATIONS:
        return getattr(module, operation)
    if backend == "native":
        raise RunError(
            f"the backend 'native' was asked for, but {operation} has no native implementation "
            f"for {device_type} tensors in this installation; use 'auto' or 'reference', and see "
            "'drf-fast doctor' for what is built"
        )
    return fallback
