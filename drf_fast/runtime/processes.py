"""Several processes on one job, as ``torchrun`` starts them: ranks and collective operations.

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
_TIMEOUT = datetime.timedelta(days=30)


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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)


def broadcast(value: Any) -> Any:
    """The value of process 0, in all processes: for what is measured and may differ."""
    if count() == 1:
        return value
    values = [value]
    with _collective():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(values: torch.Tensor) -> None:
    """Replace ``values`` by their sum over the processes, the same bits in all of them."""
    if count() > 1:
        with _collective():
            dist.all_reduce(values)


def barrier() -> None:
    """Return when all processes are here."""
    if count() > 1:
        with _collective():
            dist.barrier()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """A collective operation fails where another process has ended, which has said why itself."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"process {rank()} of {count()}: a collective operation failed, expected all processes "
            f"to take part, got an error ({' '.join(str(error).split())[:120]}); see what the "
            "process that failed first says"
        ) from error


def finish() -> None:
    """Leave the group."""
    if count() > 1 and dist.is_initialized():
        dist.destroy_process_group()
