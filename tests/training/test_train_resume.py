"""A run that is killed and resumed is the uninterrupted run, bit for bit.

This file is its own worker: one process that forks a child for each run, so that torch is imported
once. A child is killed by SIGKILL at a chosen call.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.runtime.files import locked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SMALL = [
    "--train-images", "150", "--epochs", "2", "--steps", "1", "--device", "cpu",
    "--memory-format", "contiguous", "--certify-images", "0",
]  # fmt: skip
# 3 steps an epoch. Files are replaced in this order: settings, metrics, then the checkpoint after
# step 2, epoch 1, step 4 and epoch 2; fsync also follows each line of metrics.
KILLS = {
    "at the first step": ("step", 1),
    "while the settings are written": ("replace", 1),
    "within an epoch": ("step", 3),
    "while the first checkpoint is written": ("replace", 3),
    "while a line of metrics is written": ("fsync", 4),
    "between metrics and checkpoint": ("replace", 4),
    "in the next epoch": ("step", 6),
    "while a later checkpoint is written": ("fsync", 6),
    "as soon as there is a checkpoint": ("outside", 0),
}


def deadly(function: Any, call: int) -> Any:
    """``function``, whose ``call``-th call never happens."""
    calls = [0]

    def until_then(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return until_then


def child(words: list[str], where: str = "", call: int = 0, threads: int = 1) -> int:
    """The status of ``drf-fast`` in a forked process; -9 where it was killed."""
    pid = os.fork()
    if pid == 0:
        from drf_fast.runtime import files
        from drf_fast.training import loop

        torch.set_num_threads(threads)
        owner, name = {
            "step": (loop, "one_step"), "replace": (files.os, "replace"),
            "fsync": (files.os, "fsync"),
        }.get(where, (None, ""))  # fmt: skip
        if owner is not None:
            setattr(owner, name, deadly(getattr(owner, name), call))
        os._exit(main(words))
    if where == "outside":
        path = Path(words[words.index("--out") + 1]) / "checkpoint.pt"
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def worker(base: Path) -> None:
    """The uninterrupted run, and one that is killed and resumed for each of KILLS."""

    from drf_fast.training import loop

    load = loop.data.load
    few = {split: load("mnist-mini", split, limit=150) for split in ("train", "test")}
    loop.data.load = lambda name, split, **options: few[split]
    torch.set_num_threads(1)
    status = {"whole": child(["train", "--out", str(base / "whole"), *SMALL])}
    for number, (where, call) in enumerate(KILLS.values()):
        out = ["train", "--out", str(base / f"run{number}"), "--resume"]
        status[f"kill{number}"] = child([*out, *SMALL, "--save-every", "2"], where, call)
        left = sorted(path.name for path in (base / f"run{number}").iterdir())
        (base / f"left{number}.json").write_text(json.dumps(left))
        # Where there are no settings yet, the same command has to be given again.
        again = [] if "config.json" in left else SMALL
        threads = 1 if again else 2
        status[f"resume{number}"] = child([*out, *again], threads=threads)
    (base / "status.json").write_text(json.dumps(status))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    timings = ("seconds", "images_per_second")
    return [{key: row[key] for key in row if key not in timings} for row in rows]


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KILLS)), ids=list(KILLS))
def test_a_killed_and_resumed_run_is_the_uninterrupted_run(base, number):
    status = json.loads((base / "status.json").read_text())
    assert status["whole"] == 0
    assert status[f"kill{number}"] == -signal.SIGKILL
    assert status[f"resume{number}"] == 0
    whole = checkpoint.load(base / "whole" / "checkpoint.pt")
    resumed = checkpoint.load(base / f"run{number}" / "checkpoint.pt")
    assert whole["step"] == 6 and whole["config"]["threads"] == 1
    for part in ("model", "optimizer", "ball", "epoch", "batch", "step"):
        assert same(whole[part], resumed[part]), part
    assert metrics(base / f"run{number}") == metrics(base / "whole")
    left = {path.name for path in (base / f"run{number}").iterdir()}
    assert left == {path.name for path in (base / "whole").iterdir()}  # nothing half written


@pytest.mark.slow
def test_the_kills_came_when_they_were_meant_to(base):
    left = [json.loads((base / f"left{i}.json").read_text()) for i in range(len(KILLS))]
    found = dict(zip(KILLS, left, strict=True))

    def unfinished(moment: str, name: str) -> bool:
        return any(file.startswith(f".{name}.") for file in found[moment])

    assert unfinished("while the settings are written", "config.json")
    assert "config.json" not in found["while the settings are written"]
    assert unfinished("while the first checkpoint is written", "checkpoint.pt")
    assert "checkpoint.pt" not in found["while the first checkpoint is written"]
    assert "checkpoint.pt" in found["within an epoch"]
    assert unfinished("between metrics and checkpoint", "checkpoint.pt")
    assert unfinished("while a later checkpoint is written", "checkpoint.pt")
    assert "checkpoint.pt" in found["as soon as there is a checkpoint"]


@pytest.mark.slow
def test_two_processes_do_not_train_into_one_folder(tmp_path, capsys):
    words = ["train", "--out", str(tmp_path / "r"), *SMALL, "--max-steps", "1"]
    assert main(words) == 0
    before = (tmp_path / "r" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    with locked(tmp_path / "r"):
        for flag in ("--resume", "--force"):
            assert main([*words, flag]) == 2
            assert "is being written by another process" in capsys.readouterr().err
    assert (tmp_path / "r" / "checkpoint.pt").read_bytes() == before
    assert main([*words[:-2], "--resume"]) == 0


@pytest.mark.slow
def test_resume_keeps_the_recorded_threads_and_refuses_others(tmp_path, capsys):
    threads = torch.get_num_threads()
    words = ["train", "--out", str(tmp_path / "r"), *SMALL]
    assert main([*words, "--max-steps", "1", "--threads", "2"]) == 0
    assert torch.get_num_threads() == threads
    assert main([*words, "--resume", "--threads", "1"]) == 2
    assert "threads (then 2, now 1)" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["threads"] == 2
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_checkpoint_from_before_a_setting_existed_can_be_resumed(tmp_path, capsys):
    words = ["train", "--out", str(tmp_path / "r"), *SMALL]
    assert main([*words, "--max-steps", "2"]) == 0
    path = tmp_path / "r" / "checkpoint.pt"
    saved = checkpoint.load(path)
    for name in ("macer_lam", "threads", "accumulate"):
        del saved["config"][name]
    del saved["totals"], saved["processes"], saved["sha256"], saved["format"]
    checkpoint.save(path, saved)
    assert main([*words, "--resume"]) == 0
    assert checkpoint.load(path)["step"] == 6


@pytest.mark.parametrize("lost", ["optimizer", "ball", "epoch"])
def test_a_checkpoint_without_the_state_of_training_is_refused(tmp_path, capsys, lost):
    words = ["train", "--out", str(tmp_path / "r"), *SMALL]
    assert main([*words, "--max-steps", "1"]) == 0
    path = tmp_path / "r" / "checkpoint.pt"
    saved = checkpoint.load(path)
    del saved[lost], saved["sha256"], saved["format"]
    checkpoint.save(path, saved)
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "expected a checkpoint with the state of a training run" in capsys.readouterr().err
    assert path.read_bytes() == before


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
