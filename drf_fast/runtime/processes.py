"""Several processes on one job, as ``torchrun`` starts them: who am I, agree, wait.

Without torchrun there is one process, and everything here is immediate.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from drf_fast.errors import InputError, RunError

# Ranks wait for the slowest one, and that may take a certification's whole time.
_PATIENCE = datetime.timedelta(days=30)


def rank() -> int:
    """This process's number, 0 to ``count() - 1``."""
    return _from_environment("RANK", 0)


def count() -> int:
    """How many processes work on the job."""
    return _from_environment("WORLD_SIZE", 1)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise InputError(f"{name} must be a number, as torchrun sets it, got {text!r}; unset it")
    return int(text)


def start(device: torch.device) -> None:
    """Join the other processes, with nccl on GPUs and gloo elsewhere; nothing for one process."""
    if count() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(_from_environment("LOCAL_RANK", 0))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)


def agree(value: Any) -> Any:
    """The value of process 0, in all processes: for what is measured and may differ."""
    if count() == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def total(values: torch.Tensor) -> None:
    """Replace ``values`` by their sum over the processes, the same bits in all of them."""
    if count() > 1:
        with _together():
            dist.all_reduce(values)


def wait() -> None:
    """Return when all processes are here."""
    if count() > 1:
        with _together():
            dist.barrier()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """An exchange fails where another process has ended, which has said why itself."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"process {rank()} of {count()}: expected an answer of the others, got an error "
            f"({' '.join(str(error).split())[:120]}); the process that failed first says why"
        ) from error


def finish() -> None:
    """Leave the group."""
    if count() > 1 and dist.is_initialized():
        dist.destroy_process_group()
