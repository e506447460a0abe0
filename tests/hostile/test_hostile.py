"""What hostile tries find: nothing. ``tries.py`` is the harness, and a command for the long form.

Processes that refuse, stop or are killed are tried in ``training/test_several_processes.py``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ends
import pytest
import tries

pytestmark = pytest.mark.slow
SLOW = {"flags": 60, "checkpoint": 200, "state": 60, "log": 200, "sidecar": 120, "settings": 60,
        "idx": 300, "png": 200, "npz": 300}  # fmt: skip
TRAIN = [
    sys.executable, "-m", "drf_fast", "train", "--max-steps", "4", "--train-images", "64",
    "--batch-size", "16", "--steps", "1", "--save-every", "1", "--certify-images", "2",
    "--certify-n", "100", "--threads", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[tries.Place]:
    with tries.place() as made:
        yield made


def found(place: tries.Place, kind: str, seed: int, most: int) -> list[tuple[int, str, str]]:
    began = time.monotonic()
    made, faults = tries.run(place, kind, seed, most, began + 3600)
    print(tries.report(kind, made, faults, time.monotonic() - began))
    assert made == most
    return faults


@pytest.mark.parametrize("kind", list(tries.CLASSES))
def test_no_try_ends_in_a_traceback_a_hang_or_silence(place, kind):
    assert found(place, kind, 0, SLOW[kind]) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", list(tries.CLASSES))
def test_nor_do_fifteen_times_as_many(place, kind):
    assert found(place, kind, 1, 15 * SLOW[kind]) == []


def test_the_harness_sees_faults(place, monkeypatch):
    """A traceback, a hang, silence, and a checkpoint accepted although it was damaged."""

    def sleeps(place: tries.Place, rng: random.Random) -> tuple[str, str | None]:
        time.sleep(30)
        return "", None

    def raises(words: list[str]) -> int:
        raise KeyError("oh")

    monkeypatch.setattr(tries, "HANG", 1)
    monkeypatch.setitem(tries.CLASSES, "sleeps", sleeps)
    assert "hang" in tries.run(place, "sleeps", 0, 1, time.monotonic() + 60)[1][0][2]
    monkeypatch.setattr(ends, "main", raises)
    assert "traceback" in tries.run(place, "flags", 0, 1, time.monotonic() + 60)[1][0][2]
    monkeypatch.setattr(ends, "main", lambda words: 2)
    assert "without a word" in tries.run(place, "flags", 0, 1, time.monotonic() + 60)[1][0][2]
    monkeypatch.setattr(tries.checkpoint, "load_any", lambda path: {"model": 1})
    assert "silent" in tries.run(place, "checkpoint", 0, 1, time.monotonic() + 60)[1][0][2]


# ---- the environment


def ends_in_a_sentence(words: list[str], before: str = "", **options) -> str:
    """Standard error of a command that a shell runs, limits set ``before``."""
    shell = ["sh", "-c", f'{before}\nexec "$@"', "sh", *words]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=240, **options)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2), done.returncode
    if done.returncode:
        assert "drf-fast: " in done.stderr
    return done.stderr


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={request.param[0]},nr_inodes={request.param[1]}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    try:
        made = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("needs mount")
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    "small_disk", [("64k", 6), ("4m", 4), ("4m", 7), ("4m", 8), ("64k", 99)], indirect=True
)
def test_a_disk_without_room_or_inodes(small_disk):
    error = ends_in_a_sentence([*TRAIN, "--out", str(small_disk / "r")])
    assert "No space left on device" in error or "no space left on device" in error


@pytest.mark.skipif(os.name != "posix", reason="limits of a POSIX shell")
@pytest.mark.parametrize(
    "limit",
    ["ulimit -v 1000000", "ulimit -v 2600000", "ulimit -f 100", "ulimit -n 14", "exec 0<&-"],
)
def test_limits_of_the_shell(tmp_path, limit):
    ends_in_a_sentence([*TRAIN, "--out", str(tmp_path / "r")], before=limit)


@pytest.mark.skipif(os.name != "posix", reason="descriptors are closed by a POSIX shell")
def test_a_whole_run_with_closed_descriptors(tmp_path):
    ends_in_a_sentence([*TRAIN, "--out", str(tmp_path / "r")], before="exec 0<&- 1>&- 2>&-")
    assert (tmp_path / "r" / "certificates.tsv").exists()


def test_a_batch_that_memory_cannot_hold_is_named(tmp_path):
    words = [*TRAIN, "--batch-size", "1000000", "--num-samples", "100000"]
    words[words.index("--train-images") + 1] = "10000"
    error = ends_in_a_sentence([*words, "--out", str(tmp_path / "r")])
    assert "1,000,000,000 rows" in error and "--batch-size" in error
