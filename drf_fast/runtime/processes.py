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
from drf_fast.runtime.meeting import Meeting

DEFAULT_TIMEOUT = 600.0  # seconds
_MOST = 2**20  # processes
_REFUSING = 10.0  # seconds to find the others in, only to tell them

_meeting: Meeting | None = None
_groups = 0  # how often they have joined
_waits = 0  # how often ``wait_for_all`` was called
_done = False  # nobody waits for this process any more


def rank() -> int:
    """This process's number, 0 to ``count() - 1``."""
    number, size = _from_environment("RANK", 0, 0), count()
    if number >= size:
        raise InputError(
            f"RANK must be a number below WORLD_SIZE, as torchrun sets it, got {number} of {size}; "
            "unset both, or set each of the processes its own"
        )
    return number


def count() -> int:
    """How many processes work on the job."""
    return _from_environment("WORLD_SIZE", 1, 1)


def _from_environment(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text[:18]) < _MOST:
        raise InputError(
            f"{name} must be a number from {least} to {_MOST - 1}, as torchrun sets it, got "
            f"{text[:40]!r}; unset it"
        )
    return int(text)


def check_environment() -> None:
    """Refuse what torchrun would not have set, before any work.

    Raises:
        InputError: one sentence that names the variable.
    """
    rank()
    if count() == 1:
        return
    if "RANK" not in os.environ:
        raise InputError(
            f"WORLD_SIZE is {count()}, and RANK is not set: expected both, as torchrun sets them; "
            "unset WORLD_SIZE, or start the processes with torchrun"
        )
    for name, example in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        if not os.environ.get(name):
            raise InputError(
                f"WORLD_SIZE is {count()}, and {name} is not set: expected where process 0 is to "
                f"be met, {example} for example; start the processes with torchrun, or set it"
            )
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port[:18]) < 2**16:
        raise InputError(f"MASTER_PORT must be a port from 1 to 65535, got {port[:40]!r}; set one")


def start(device: torch.device, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Join the other processes, with nccl on GPUs and gloo elsewhere; nothing for one process.

    Args:
        device: where they compute.
        timeout: seconds within which the others have to come, and to answer later on.

    Raises:
        InputError: an environment that torchrun does not make.
        RunError: another process refused, or did not come.
    """
    global _groups, _done
    check_environment()
    if count() == 1 or dist.is_initialized():
        return
    _done = False
    if _groups == 0:
        _meet(timeout).arrive()
    _groups += 1
    if device.type == "cuda":
        torch.cuda.set_device(_from_environment("LOCAL_RANK", 0, 0))
    with _collective():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_meet(timeout).part(f"group-{_groups}"),
            rank=rank(),
            world_size=count(),
            timeout=datetime.timedelta(seconds=timeout),
        )


def _meet(timeout: float) -> Meeting:
    global _meeting
    if _meeting is None:
        _meeting = Meeting(rank(), count(), timeout)
    return _meeting


def refuse(reason: str) -> None:
    """Tell the other processes why this one ends; nothing for one process. Never raises."""
    with contextlib.suppress(InputError, RunError):
        check_environment()
        if count() > 1 and not _done:
            _meet(_REFUSING).refuse(reason)


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


def wait_for_all() -> None:
    """As ``barrier``, where the work before it may take long: signs of life are enough.

    Raises:
        RunError: a process refused, or has not called ``beat`` for the time-out.
    """
    global _waits
    if _meeting is not None:
        _waits += 1
        _meeting.wait_for_all(f"wait-{_waits}")


def beat() -> None:
    """A sign of life, for others that ``wait_for_all``; cheap enough for every forward pass."""
    if _meeting is not None:
        _meeting.beat()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """A collective operation fails where another process has ended or does not answer.

    Raises:
        RunError: says which one, and why where it said so itself.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or _meeting is None:
            raise
        raise _meeting.explain(error) from error


def finish() -> None:
    """Leave the group: the work is done."""
    global _done
    _done = True
    if count() > 1 and dist.is_initialized():
        dist.destroy_process_group()
