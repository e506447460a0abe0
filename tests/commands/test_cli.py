"""The command line as a shell sees it: streams, exit statuses, speed of ``--help``."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro

import drf_fast
from drf_fast.commands.cli import main
from drf_fast.config import look, options, tags
from drf_fast.errors import InputError
from drf_fast.runtime import files

COMMANDS = ["train", "certify", "predict", "attack", "show", "report", "sweep", "gap", "doctor"]


def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drf_fast", *words], capture_output=True, text=True, **options
    )


def test_help_lists_every_command_and_imports_no_torch():
    code = (
        "import sys, drf_fast.commands.cli as c\n"
        "c.main(['--help'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_no_torch(command):
    code = (
        "import sys, drf_fast.commands.cli as c\n"
        f"try: c.main([{command!r}, '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: drf-fast {command}" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_flag_is_one_paragraph_without_empty_defaults(command):
    said = run(command, "--help", env={**os.environ, "COLUMNS": "100"}).stdout
    assert "(default: None)" not in said and "{None}" not in said and "(default: )" not in said
    lines = [line.strip("│ ") for line in said.splitlines() if line.startswith("│")]
    assert len(lines) > 2 and "default" in said
    if command == "train":
        text = "package.module:factory, called with num_classes=K, on the command line only."
        assert text in lines  # as long as a line can be
    if command == "certify":  # above --n0, which chooses it
        assert "the probability of the chosen class." in " ".join(lines)
    if command == "attack":
        assert "for all of them: --max-images None." in " ".join(lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_every_flag_once_in_its_section(command):
    said = run(command, "--help", env={**os.environ, "COLUMNS": "100"}).stdout
    title, found, sections = "", [], []
    for line in said.splitlines():
        if line.startswith("╭"):
            title = line.strip("╭─╮ ").removesuffix(" options")
        elif line.startswith(("│ --", "│ -h")):
            flags = re.findall(r"--[\w-]+", line.removeprefix("│ ").split("  ")[0])
            found += [flag for flag in flags if not flag.startswith("--no-")]
            sections += [(title, flag) for flag in flags]
    assert len(found) == len(set(found))
    kinds = {kind.__name__: kind for kind in (*vars(options).values(), *vars(look).values())
             if isinstance(kind, type)}  # fmt: skip
    settings = tags.of(kinds[f"{command.capitalize()}Config"])
    shown = {"--" + name.replace("_", "-") for name in settings} - {"--run", "--logs"}
    shown -= {"--checkpoint", "--checkpoints"}  # these are words without a flag
    assert set(found) - {"--help", "--dry-run"} == shown - {"--dry-run"}
    if command == "train" and not tyro.__version__.startswith("0."):  # older ones draw one box
        wanted = {("macer", "--macer-lam"), ("drf", "--kappa"), ("adversary", "--epsilon"),
                  ("data", "--data-dir"), ("optimiser", "--accumulate"), ("output", "--resume"),
                  ("computation", "--precision"), ("certificates", "--certify-n")}  # fmt: skip
        assert wanted <= set(sections)


def test_version():
    assert run("--version").stdout == f"drf-fast {drf_fast.__version__}\n"


def test_no_command_and_an_unknown_command_exit_with_2(capsys):
    assert main([]) == 2
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    commands = "train, certify, predict, attack, show, report, sweep, gap, doctor"
    assert f"expected a command ({commands}), got 'trian'" in captured.err
    assert captured.out == ""


def test_an_unknown_flag_exits_with_2_on_stderr():
    done = run("certify", "x.pt", "--nn", "5")
    assert done.returncode == 2 and "--nn" in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_importing_the_package_is_lazy():
    code = "import sys, drf_fast; assert 'torch' not in sys.modules; drf_fast.smooth_ce"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("module", ["data", "errors", "functional", "models", "nn"])
def test_modules_that_the_documentation_names_are_there_after_the_import(module):
    code = f"import drf_fast; assert drf_fast.{module}.__name__ == 'drf_fast.{module}'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_exists_and_unknown_ones_do_not():
    for name in drf_fast.__all__:
        assert getattr(drf_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'smooth_cee'"):
        drf_fast.smooth_cee  # noqa: B018


@pytest.mark.slow
def test_a_full_disk_exits_with_1_and_keeps_the_old_file(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk would."""
    resource = pytest.importorskip("resource")
    folder = tmp_path / "run"
    words = ["train", "--out", str(folder), "--certify-images", "0"]
    first = ["--method", "gaussian", "--train-images", "64", "--epochs", "2", "--device", "cpu"]
    assert run(*words, *first, "--max-steps", "1").returncode == 0
    before = (folder / "checkpoint.pt").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = run(*words, "--resume", preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("drf-fast: File too large")
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_says_how_to_go_on(tmp_path):
    words = ["train", "--out", str(tmp_path / "r"), "--epochs", "500", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "drf_fast", *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    try:
        while not process.stderr.readline().startswith("training"):
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in err.splitlines()[-1]


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_missing_folder_is_bad_input(tmp_path: Path):
    with pytest.raises(InputError, match="create the folder or choose another one"):
        files.write_atomic(tmp_path / "none" / "file", "x")


def test_broken_json_is_bad_input(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        files.read_json(tmp_path / "a.json")


def test_deeply_nested_json_is_bad_input(tmp_path: Path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="nested too deep"):
        files.read_json(tmp_path / "a.json")
