"""Processes of one job that refuse, never come or stop: no other waits for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config.durations import seconds
from drf_fast.errors import InputError, RunError
from drf_fast.runtime import meeting, processes
from drf_fast.runtime.meeting import Meeting

needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != "posix", reason="needs torch.distributed"
)
TRAIN = [
    "train", "--train-images", "640", "--batch-size", "8", "--epochs", "50", "--steps", "1",
    "--device", "cpu", "--threads", "1", "--memory-format", "contiguous", "--certify-images", "0",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Job:
    """Processes as a cluster starts them, without torchrun, which would end the others itself."""

    def __init__(self) -> None:
        self.port = free_port()
        self.running: list[subprocess.Popen[str]] = []

    def start(self, rank: int, words: list[str], size: int = 2) -> subprocess.Popen[str]:
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "drf_fast", *words], env={**os.environ, **variables},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(process)
        return process


@pytest.fixture
def job() -> Iterator[Job]:
    started = Job()
    yield started
    for process in started.running:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[str], within: float = 120) -> tuple[int, str]:
    _, error = process.communicate(timeout=within)
    assert "Traceback" not in error, error
    return process.returncode, error


def wait_for_line(process: subprocess.Popen[str], start: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            return
    raise AssertionError(f"no line begins with {start!r}")


@needs_distributed
@pytest.mark.slow
@pytest.mark.parametrize("refusing", [0, 1])
@pytest.mark.parametrize(
    ("flags", "reason"),
    [(["--sigma", "0"], "--sigma must be a finite number"), (["--no-such"], "its flags are wrong")],
)
def test_a_process_that_refuses_tells_the_others(tmp_path, job, refusing, flags, reason):
    words = [*TRAIN, "--out", str(tmp_path / "r")]
    ready = job.start(1 - refusing, words)
    refused = job.start(refusing, [*words, *flags])
    status, error = end_of(refused)
    assert status == 2
    status, error = end_of(ready)
    assert status == 1
    assert f"got the end of process {refusing}: " in error and reason in error


@needs_distributed
@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_comes_is_named(tmp_path, job, missing):
    words = [*TRAIN, "--out", str(tmp_path / "r"), "--timeout", "3s"]
    status, error = end_of(job.start(1 - missing, words))
    assert status == 1
    assert ("got no process 1" if missing else "start process 0 too") in error


@needs_distributed
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named(tmp_path, job, stopped):
    words = [*TRAIN, "--out", str(tmp_path / "r"), "--timeout", "20"]
    both = [job.start(rank, words) for rank in (0, 1)]
    wait_for_line(both[0], "epoch 1/50: ")
    os.kill(both[stopped].pid, signal.SIGSTOP)
    # Two time-outs, and what a busy machine adds to them.
    status, error = end_of(both[1 - stopped], within=120)
    assert status == 1
    # Process 0 keeps the store too: where it is stopped, its address is all that answers not.
    assert ("got none of process 1" if stopped else "which process 0 or torchrun keeps") in error


@needs_distributed
@pytest.mark.slow
def test_a_killed_process_is_named(tmp_path, job):
    both = [job.start(rank, [*TRAIN, "--out", str(tmp_path / "r")]) for rank in (0, 1)]
    wait_for_line(both[0], "epoch 1/50: ")
    both[1].kill()
    status, error = end_of(both[0], within=60)
    assert status == 1 and "answer of all processes, got none of process 1" in error


@needs_distributed
@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_one_signal_stops_all_after_the_same_step(tmp_path, job, told):
    both = [job.start(rank, [*TRAIN, "--out", str(tmp_path / "r")]) for rank in (0, 1)]
    wait_for_line(both[0], "epoch 1/50: ")
    both[told].send_signal(signal.SIGTERM)
    for process in both:
        status, error = end_of(process, within=60)
        assert status == 143 and "with --resume" in error
    saved = checkpoint.load(tmp_path / "r" / "checkpoint.pt")
    assert saved["step"] == 80 * saved["epoch"] + saved["batch"] > 0


@needs_distributed
@pytest.mark.slow
def test_why_process_0_ends_reaches_one_that_waits_for_it(tmp_path, job):
    """It waits in a collective operation, and process 0 takes the meeting place along."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("an occupied folder, which process 0 alone looks at")
    began = time.monotonic()
    both = [job.start(rank, [*TRAIN, "--out", str(tmp_path / "r")]) for rank in (0, 1)]
    assert end_of(both[0])[0] == 2
    status, error = end_of(both[1])
    assert status == 1 and "got the end of process 0: " in error
    assert time.monotonic() - began < 15 + 20  # the start of both, but not the whole wait


@needs_distributed
@pytest.mark.slow
def test_processes_that_certify_something_else_are_refused_and_nothing_is_replaced(tmp_path, job):
    words = [*TRAIN[:-2], "--max-steps", "1", "--out", str(tmp_path / "r"), "--certify-images", "2"]
    assert main(words) == 0
    log = tmp_path / "r" / "certificates.tsv"
    before = log.read_bytes()
    certify = ["certify", str(tmp_path / "r"), "--n", "100", "--max-images", "2", "--device", "cpu",
               "--out", str(log), "--force"]  # fmt: skip
    first = job.start(0, certify)
    status, error = end_of(job.start(1, [*certify, "--seed", "7", "--skip", "3"]))
    assert status == 2 and "expected the same, got other seed, skip; start all with" in error
    assert end_of(first)[0] == 1 and log.read_bytes() == before


# ---- two of them in one process


def test_fewer_gpus_than_processes_is_a_sentence(monkeypatch):
    job = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1,
           "LOCAL_RANK": 1}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match="LOCAL_RANK is 1, and this machine has 1 GPUs"):
        processes.start(torch.device("cuda"))


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["certify", "run"]])
def test_tasks_of_srun_do_not_become_runs_of_their_own(monkeypatch, capsys, command):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert main(command) == 2
    assert "srun has started 4 tasks, and WORLD_SIZE is not set: expected RANK=$SLURM_PROCID" in (
        capsys.readouterr().err
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.check_environment()


@pytest.fixture
def met(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Meeting, Meeting]:
    """Processes 0 and 1 of two, with a time-out of a second, or of the parameter."""
    monkeypatch.setattr(meeting, "_HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    timeout = getattr(request, "param", 1.0)
    return Meeting(0, 2, timeout), Meeting(1, 2, timeout)


@needs_distributed
@pytest.mark.slow
def test_a_slow_process_is_waited_for_beyond_the_timeout(met):
    first, second = met

    def work() -> None:
        until = time.monotonic() + 1.8
        while time.monotonic() < until:
            second.heartbeat()
            time.sleep(0.02)
        second.wait_for_all("certified")

    thread = threading.Thread(target=work)
    began = time.monotonic()
    thread.start()
    first.wait_for_all("certified")
    assert time.monotonic() - began > 1.7
    thread.join()


@needs_distributed
def test_a_silent_process_is_not_waited_for(met):
    met[1].heartbeat()
    began = time.monotonic()
    with pytest.raises(RunError, match="within 1 s, got none of process 1; see whether it"):
        met[0].wait_for_all("certified")
    assert time.monotonic() - began > 1


@needs_distributed
@pytest.mark.parametrize("met", [60.0], indirect=True)  # however late the timer is
def test_who_refuses_while_the_others_wait_is_heard(met):
    threading.Timer(0.3, met[1].refuse, ["the disk is full"]).start()
    with pytest.raises(RunError, match="got the end of process 1: the disk is full"):
        met[0].wait_for_all("certified")


@needs_distributed
def test_where_nobody_answers_nobody_is_told(monkeypatch):
    tried = []

    def nobody(*arguments):
        tried.append(arguments)
        raise RunError("expected the meeting place")

    monkeypatch.setattr(processes, "Meeting", nobody)
    monkeypatch.setattr(processes, "_unreachable", False)  # and after the test again
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RunError, match="expected the meeting place"):
        processes.start(torch.device("cpu"), 5)
    processes.refuse("it ends")
    assert tried == [(1, 2, 5)]


@needs_distributed
def test_one_rank_twice_is_refused(met):
    with pytest.raises(RunError, match="got no process 0"):
        met[1].arrive()
    with pytest.raises(InputError, match="RANK 1 is that of two processes"):
        Meeting(1, 2, 1.0).arrive()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "abc"}, "RANK must be a number from 0 to"),
        ({"RANK": "-1"}, "RANK must be a number from 0 to"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number from 1 to"),
        ({"WORLD_SIZE": "9" * 50}, "WORLD_SIZE must be a number from 1 to"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be a number below WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "MASTER_PORT is not set"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1e4"},
            "MASTER_PORT must be a port",
        ),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["certify", "run"]])
def test_a_wrong_environment_is_a_sentence(monkeypatch, capsys, command, variables, message):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert processes._meeting is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), (90, 90), (2.5, 2.5), ("90s", 90), ("10min", 600), ("1.5 h", 5400), ("1d", 86400)],
)
def test_durations(text, expected):
    assert seconds(text, "timeout") == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0.5s", "31d", "-3", "nan", "inf", "1e3", "10 minutes", True]
)
def test_other_durations_are_a_sentence(text):
    with pytest.raises(InputError, match="--timeout must be a time from 1 s to 30 d"):
        seconds(text, "timeout")
