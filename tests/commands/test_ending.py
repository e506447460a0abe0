"""How a command ends where its surroundings fail it: signals, full devices, missing packages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands import cli
from drf_fast.runtime import signals
from drf_fast.training import state

COMMAND = [sys.executable, "-m", "drf_fast"]
FULL = Path("/dev/full")
SHORT = [
    "train", "--train-images", "99", "--batch-size", "9", "--steps", "1", "--device", "cpu",
]  # fmt: skip


def run(words, **options):
    return subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_training_with_the_step_saved(tmp_path, number):
    images, size = 2000, 8
    words = ["train", "--train-images", str(images), "--epochs", "99", "--batch-size", str(size)]
    words += ["--device", "cpu", "--threads", "1", "--out", str(tmp_path / "r")]
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(("train: ", "epoch 1/99: ")):  # the first steps are done, or an epoch
            break
    process.send_signal(number)
    error = process.stderr.read()
    assert process.wait(60) == 128 + number
    assert "the same command with --resume (and no --force) goes on" in error
    saved = checkpoint.load(tmp_path / "r" / "checkpoint.pt")
    epoch, batch, step = (saved[name] for name in ("epoch", "batch", "step"))
    assert step == epoch * (images // size) + batch > 0 and epoch < 99
    assert 0 <= batch < images // size

    further = run([*words, "--resume", "--max-steps", str(step + 2), "--certify-images", "0"])
    assert further.returncode == 0, further.stderr
    assert f"at epoch {epoch}, step {step}\n" in further.stderr
    assert checkpoint.load(tmp_path / "r" / "checkpoint.pt")["step"] == step + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_the_last_save_is_heard(tmp_path, capsys, monkeypatch, number):
    save = state.save

    def saved(run):
        os.kill(os.getpid(), number)
        save(run)

    monkeypatch.setattr(state, "save", saved)
    words = [*SHORT, "--max-steps", "2", "--out", str(tmp_path / "r")]
    assert cli.main(words) == 128 + number
    assert "goes on" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "r" / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "r" / "certificates.tsv").exists()


def test_a_signal_that_comes_twice_at_once_is_one_signal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received() == signal.SIGTERM
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        now[0] = 1.0
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_reader_of_progress_that_leaves_does_not_end_the_work(tmp_path):
    words = [*SHORT, "--epochs", "2", "--certify-images", "0", "--out", str(tmp_path / "r")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    assert done.returncode == 0 and "accuracy under noise" in done.stdout
    assert checkpoint.load(tmp_path / "r" / "checkpoint.pt")["epoch"] == 2


@pytest.mark.parametrize(
    ("words", "resumable"),
    [
        ("train", True),
        ("train --dry-run", False),
        ("train --dry_run", False),
        ("train --no-dry-run", True),
        ("certify run", True),
        ("certify run --plan", False),
        ("attack run", True),
        ("sweep", True),
        ("sweep --plan", False),
        ("sweep --dry-run", False),
        ("predict run", False),
    ],
)
def test_resume_is_named_only_where_something_is_left_to_resume(
    words, resumable, monkeypatch, capsys
):
    def interrupted(words):
        raise KeyboardInterrupt

    command, *flags = words.split()
    monkeypatch.setitem(cli._COMMANDS, command, interrupted)
    assert cli.main([command, *flags]) == 130
    assert ("--resume" in capsys.readouterr().err) == resumable


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which is always full")
@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_full_device_ends_in_a_sentence(word):
    with FULL.open("w") as full:
        done = run([word], stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="descriptors are closed by a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_matter(closed):
    done = subprocess.run(["sh", "-c", f'exec "$0" -m drf_fast --version {closed}', sys.executable])
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "status"), [("doctor", 0), ("train", 1)])
def test_a_missing_dependency_is_named_and_doctor_runs_without_it(command, status):
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from drf_fast.commands.cli import main\n"
        f"sys.exit(main(['{command}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr
    if status:
        assert "expected the package tyro, which drf_fast needs here, got none" in done.stderr
