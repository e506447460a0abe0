"""Files that are no files, names that are no names, numbers that nothing can compute with."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drf_fast.commands.cli import main
from drf_fast.data import image_files
from drf_fast.errors import InputError
from drf_fast.runtime import files
from drf_fast.training import teacher
from drf_fast.training.metrics import read_metrics

LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t7\t7\t0.5\t1\t0:00:01\n"
ZERO = Path("/dev/zero")
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
needs_zero = pytest.mark.skipif(not ZERO.exists(), reason="needs /dev/zero, which has no end")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("drf-fast: ") and error.count("\n") == 1
    return error


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@posix
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(pipe, capsys):
    for words in (
        ["report", str(pipe)],
        ["certify", str(pipe)],
        ["train", "--config", str(pipe)],
        ["train", "--data", "mnist", "--data-dir", str(pipe)],
    ):
        assert "got" in refused(words, capsys)
    assert "expected a regular file, got a pipe" in refused(["report", str(pipe)], capsys)
    with pytest.raises(InputError, match="no regular file"):
        image_files.decode(pipe)


@posix
@pytest.mark.timeout(20)
def test_a_folder_with_a_pipe_in_it_is_reported(pipe, capsys):
    (pipe.parent / "log.tsv").write_text(LOG)
    assert main(["report", str(pipe.parent)]) == 0
    assert ": 1 image;" in capsys.readouterr().out


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((3, 10), dtype=np.float32))


@posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (archive, "got ValueError; delete the file"),
        (os.mkfifo, "expected a regular file, got a pipe"),
        (Path.mkdir, "got is a directory; delete the file"),
    ],
)
def test_odd_files_of_a_run_are_not_waited_for(tmp_path, make, message):
    for name in ("smoothed.npy", "metrics.jsonl"):
        make(tmp_path / name)
    with pytest.raises(InputError, match=message):
        teacher._read(tmp_path / "smoothed.npy", (3, 10))
    assert read_metrics(tmp_path) == []


@needs_zero
@pytest.mark.timeout(20)
@pytest.mark.parametrize("words", [["report"], ["certify"], ["predict"], ["train", "--config"]])
def test_a_device_is_not_read(words, capsys):
    assert "expected a regular file, got a device" in refused([*words, str(ZERO)], capsys)


def test_text_has_a_limit(tmp_path, monkeypatch, capsys):
    path = tmp_path / "long.toml"
    path.write_text("# " + "x" * 2**16)
    assert "expected at most 65,536 bytes of text, got 65,538" in refused(
        ["train", "--config", str(path)], capsys
    )
    monkeypatch.setattr(files, "MOST_TEXT", 10)
    path.write_text("[1, 2, 3, 4]")
    with pytest.raises(InputError, match="at most 10 bytes of text, got 12"):
        files.read_json(path)


def test_brackets_too_deep_are_a_sentence(tmp_path, capsys):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 60_000)
    assert "brackets nested too deep" in refused(["train", "--config", str(path)], capsys)


def test_report_reads_standard_input(monkeypatch, capsys):
    def feed(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    feed(LOG)
    assert main(["report", "mine=-", "--format", "csv"]) == 0
    assert "mine" in capsys.readouterr().out
    feed("")
    assert "standard input is empty" in refused(["report", "-"], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--out", "n\udcff"], "--out must be a path in UTF-8"),
        (["train", "--data-dir", "n\udcff"], "--data-dir must be a path in UTF-8"),
        (["certify", "c.pt", "--out", "n\udcff"], "--out must be a path in UTF-8"),
        (["report", "log", "--plot", "n\udcff.png"], "--plot must be a path in UTF-8"),
        (["sweep", "--vary", "sigma=1", "--out", "n\udcff"], "--out must be a path in UTF-8"),
        (["certify", "c.pt", "--out", ""], "--out must name a file, got '.'"),
        (["certify", "c.pt", "--out", "/"], "--out must name a file, got '/'"),
        (["predict", "c.pt", "--out", ".."], "--out must name a file, got '..'"),
        (["certify", "c.pt", "--alpha", "1e-320"], "least that can be computed with is 1e-300"),
        (["predict", "c.pt", "--alpha", "1e-301"], "least that can be computed with is 1e-300"),
        (["show", "run", "--epsilon", "0"], "--epsilon must be a finite number above 0"),
        (["show", "run", "--epsilon", "nan"], "--epsilon must be a finite number above 0"),
        (["gap", "run", "--plot", "absent/a.png"], "cannot write absent/a.png: expected an exist"),
        (["predict", "c.pt", "--out", "absent/a.tsv"], "cannot write absent/a.tsv: expected an"),
        (["show", "run", "--seed", "18446744073709551615"], "--seed must lie between -2^63 and"),
        (["gap", "run", "--seed", "18446744073709551616"], "--seed must lie between -2^63 and"),
        (["train", "--lr", "1e308"], "--lr must be a finite number above 0, from 1e-30 to 1e+30"),
        (["train", "--weight-decay", "1e39"], "--weight-decay must be 0 or more, at most 1e+30"),
        (["train", "--lambda-every", "4294967296"], "--lambda-every must lie between 1 and"),
    ],
)  # fmt: skip
def test_names_and_numbers_out_of_reach_are_a_sentence(words, message, capsys):
    assert message in refused(words, capsys)


def test_a_null_byte_in_a_toml_path_is_a_sentence(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text('out = "a\\u0000b"')
    assert "--out must be a path in UTF-8" in refused(["train", "--config", str(path)], capsys)


@pytest.mark.slow
def test_a_backend_of_matplotlib_that_does_not_exist_is_not_asked_for(tmp_path):
    (tmp_path / "log.tsv").write_text(LOG)
    words = ["report", str(tmp_path / "log.tsv"), "--plot", str(tmp_path / "p.png")]
    done = subprocess.run(
        [sys.executable, "-m", "drf_fast", *words],
        env={**os.environ, "MPLBACKEND": "nonsense"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
