"""Files and locks: whole or absent, readable as open() makes them, and one writer at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drf_fast.certification.log import read_log
from drf_fast.checkpoints import tensorfile
from drf_fast.config.arguments import read_toml
from drf_fast.data.idx import read_idx
from drf_fast.errors import InputError
from drf_fast.runtime import files
from drf_fast.runtime.files import (
    explained,
    lock,
    locked,
    new_folder,
    read_json,
    refuse_irregular,
    unlock,
    write_atomic,
)

HOLD = """
import sys, time
from pathlib import Path
from drf_fast.runtime.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder locked."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_and_told_what_is_locked(holder, tmp_path):
    with (
        pytest.raises(InputError, match=f"^{tmp_path} is being written by another process"),
        locked(tmp_path),
    ):
        raise AssertionError("entered")


def test_a_killed_process_leaves_no_lock_that_blocks(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert new_folder(tmp_path) == tmp_path  # what it left is no output
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_locked_once_and_unlocked_twice(tmp_path):
    guard = lock(tmp_path / "log.tsv")
    with pytest.raises(InputError, match=r"log\.tsv is being written"):
        lock(tmp_path / "log.tsv")
    unlock(lock(tmp_path / "other.tsv"))
    unlock(guard)
    unlock(guard)
    unlock(lock(tmp_path / "log.tsv"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_open_gives_and_the_umask_stays(tmp_path, monkeypatch, umask):
    before = os.umask(umask)
    try:
        set_umask = os.umask
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("all threads would see it"))
        write_atomic(tmp_path / "ours", "x")
        Path(tmp_path / "theirs").write_text("x")
    finally:
        set_umask(before)
    modes = {(tmp_path / name).stat().st_mode for name in ("ours", "theirs")}
    assert len(modes) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe")
def test_what_is_no_file_is_never_replaced(tmp_path):
    """As root, a rename would replace /dev/null by a file, for the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"expected a file or nothing there, got a {name}"):
            write_atomic(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="cannot write /dev/stdout: expected a file or nothing"):
        refuse_irregular(Path("/dev/stdout"))  # a link, to a regular file where output goes to one


READERS = {
    "log": read_log,
    "checkpoint": tensorfile.read,
    "TOML": read_toml,
    "JSON": read_json,
    "data": lambda path: read_idx(path, 1),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_every_reader_tells_bad_input_from_a_broken_disk(tmp_path, monkeypatch, reader, number):
    path = tmp_path / "file.tsv"
    path.write_text("idx\t")

    def fail(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_open_without_blocking", fail)
    kind = OSError if number == errno.EIO else InputError
    with pytest.raises(kind) as caught:
        reader(path)
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(path)
    else:
        assert f"{path}: expected a" in str(caught.value)
        assert "got permission denied; check" in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_no_bad_input_and_is_named(number):
    with pytest.raises(OSError, match="'out.tsv'") as caught, explained("write", "out.tsv", "", ""):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
