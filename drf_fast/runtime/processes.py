"""Several processes on one job, as ``torchrun`` starts them: ranks and collective operations.

Without torchrun there is one process, and every function here returns at once.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from drf_fast.errors import InputError, RunError
from drf_fast.runtime.meeting import Meeting

DEFAULT_TIMEOUT = 600.0  # seconds
_MAX_PROCESSES = 2**20  # processes
_REFUSE_TIMEOUT = 10.0  # seconds to find the store in when this process only reports its end

_meeting: Meeting | None = None
_unreachable = False  # nobody answered at the meeting place, so nobody can be told anything there
_group_count = 0  # process groups joined so far, which number the stores of the groups
_wait_count = 0  # calls of ``wait_for_all`` so far
_finished = False  # the others no longer wait for this process
_in_collective = False  # or a collective operation of this process has failed


def rank() -> int:
    """The number of this process, 0 to ``count() - 1``."""
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
    if not text.isdecimal() or not least <= int(text[:18]) < _MAX_PROCESSES:
        raise InputError(
            f"{name} must be a number from {least} to {_MAX_PROCESSES - 1}, as torchrun sets it, "
            f"got {text[:40]!r}; unset it"
        )
    return int(text)


def check_environment() -> None:
    """Check the environment variables that torchrun sets, before any work.

    Raises:
        InputError: one is missing or invalid.
    """
    rank()
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"srun has started {tasks} tasks, and WORLD_SIZE is not set: expected RANK="
            f"$SLURM_PROCID WORLD_SIZE={tasks} LOCAL_RANK=$SLURM_LOCALID, and MASTER_ADDR and "
            "MASTER_PORT of task 0, for one job; set them, or WORLD_SIZE=1 if each task is a run "
            "of its own"
        )
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
    """Join the process group, nccl on GPUs and gloo elsewhere; does nothing for one process.

    Args:
        device: where the processes compute.
        timeout: seconds within which the others have to start, and to answer later on.

    Raises:
        InputError: invalid environment variables, see ``check_environment``.
        RunError: another process ended, or did not start.
    """
    global _group_count, _finished, _in_collective
    check_environment()
    if count() == 1 or dist.is_initialized():
        return
    local = _from_environment("LOCAL_RANK", 0, 0)
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not by_torchrun and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        local = 0  # srun shows each process its own GPU
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise InputError(
            f"LOCAL_RANK is {local}, and this machine has {torch.cuda.device_count()} GPUs: "
            "expected one for each process; start fewer processes, or pass --device cpu"
        )
    _finished = _in_collective = False
    if _group_count == 0:
        _get_meeting(timeout).arrive()
    _group_count += 1
    if device.type == "cuda":
        torch.cuda.set_device(local)
    # Functions of this module have the group of the moment of import as a default. Imported later,
    # by the first optimizer, they would keep the group and its threads alive after ``finish``, and
    # a thread that lets go of a tensor while Python ends aborts the process.
    importlib.import_module("torch.distributed.nn")
    with collective():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_get_meeting(timeout).namespace(f"group-{_group_count}"),
            rank=rank(),
            world_size=count(),
            timeout=datetime.timedelta(seconds=timeout),
        )


def _get_meeting(timeout: float) -> Meeting:
    global _meeting, _unreachable
    if _meeting is None:
        _unreachable = True
        _meeting = Meeting(rank(), count(), timeout)
        _unreachable = False
    return _meeting


def refuse(reason: str) -> None:
    """Tell the other processes why this one ends; does nothing for one process. Never raises."""
    with contextlib.suppress(InputError, RunError):
        check_environment()
        if count() > 1 and not (_finished or _unreachable):
            _get_meeting(_REFUSE_TIMEOUT).refuse(reason, then=_wake_others)


def _wake_others() -> None:
    """Leave the group of CPU processes: others in a collective operation see that, and ask why."""
    if dist.is_initialized() and dist.get_backend() == "gloo" and not _in_collective:
        dist.destroy_process_group()


def broadcast(value: Any) -> Any:
    """The value of process 0, in all processes: for measurements, which differ between them."""
    if count() == 1:
        return value
    values = [value]
    with collective():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(values: torch.Tensor) -> None:
    """Replace ``values`` by their sum over the processes, the same bits in all of them."""
    if count() > 1:
        with collective():
            dist.all_reduce(values)


def barrier() -> None:
    """Return when all processes have called it."""
    if count() > 1:
        with collective():
            dist.barrier()


def refuse_differences(values: dict[str, Any], work: str) -> None:
    """Refuse values that are not those of process 0, before any process goes on.

    Args:
        values: by name.
        work: what this process would do with them, "train with other settings" for example.

    Raises:
        InputError: some differ.
        RunError: those of another process do.
    """
    first = broadcast(values)
    if other := [name for name in values if name not in first or first[name] != values[name]]:
        raise InputError(
            f"process {rank()} is to {work} than process 0: expected the same, got other "
            f"{', '.join(other)}; start all with the same flags and files"
        )
    barrier()


def wait_for_all() -> None:
    """A ``barrier`` without time limit, as long as all processes call ``heartbeat``.

    Raises:
        RunError: a process ended, or has not called ``heartbeat`` for the time-out.
    """
    global _wait_count
    if _meeting is not None:
        _wait_count += 1
        _meeting.wait_for_all(f"wait-{_wait_count}")


def heartbeat() -> None:
    """Report to processes in ``wait_for_all`` that this one still works; cheap, for every pass."""
    if _meeting is not None:
        _meeting.heartbeat()


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Explain the failure of a collective operation: which process ended or does not answer.

    Raises:
        RunError: names that process, and its reason if it has given one.
    """
    global _in_collective
    _in_collective = True
    try:
        yield
        _in_collective = False
    except RuntimeError as error:
        if isinstance(error, RunError) or _meeting is None:
            raise
        raise _meeting.explain(error) from error


def finish() -> None:
    """Leave the group: the work is done."""
    global _finished
    _finished = True
    if count() > 1 and dist.is_initialized():
        dist.destroy_process_group()
