"""drf-fast doctor: it tells what is there, and survives whatever is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from drf_fast import _native, backends, doctor
from drf_fast.backends import reference

SECTIONS = ["versions", "platform", "cpu", "threads", "extensions", "operations", "cuda"]


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.collect()


def test_every_section_is_read_on_this_machine(report):
    assert list(report) == ["usable", "problem", *SECTIONS, "environment"]
    for section in SECTIONS:
        assert isinstance(report[section], dict), report[section]
    assert report["usable"] is True and report["problem"] is None


def test_each_operation_names_the_backend_that_serves_it(report):
    assert sorted(report["operations"]) == sorted(reference.__all__)
    native = "native" if _native.available() else "reference"
    assert {served["cpu"] for served in report["operations"].values()} == {native}
    with backends.use("reference"):
        served = doctor.collect()["operations"].values()
    assert {devices["cpu"] for devices in served} == {"reference"}


def test_an_extension_is_usable_or_says_why_not(report):
    for part in report["extensions"].values():
        assert part["usable"] is (part["why not"] is None)


def test_json_is_json_and_holds_the_whole_report(capsys):
    assert doctor.run(json=True) == 0
    assert list(json.loads(capsys.readouterr().out))[:3] == ["usable", "problem", "versions"]


def test_without_a_terminal_the_text_is_plain(capsys):
    assert doctor.run() == 0
    text = capsys.readouterr().out
    assert text.startswith("drf_fast is usable") and text.isprintable() is False
    assert "\x1b" not in text and "\n  torch " in text
    assert all(f"\n{section}\n" in text for section in SECTIONS if section != "extensions")


def test_on_a_terminal_there_are_tables(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert doctor.run() == 0
    assert "\x1b[" in capsys.readouterr().out


@pytest.mark.parametrize("section", ["_versions", "_cpu", "_threads", "_extensions", "_cuda"])
def test_a_section_that_cannot_be_read_shows_its_error_and_no_more(monkeypatch, capsys, section):
    def broken() -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, section, broken)
    assert doctor.run() == 0
    assert "error: OSError: the disk is on fire" in capsys.readouterr().out


def test_two_openmp_runtimes_are_reported_with_advice(monkeypatch):
    maps = "7f r-xp 0 08:01 1 /a/libgomp.so.1\n7f r-xp 0 08:01 2 /b/libgomp-2.so.1.0.0\n"
    monkeypatch.setattr(_native, "available", lambda: True)
    monkeypatch.setattr(_native, "load", lambda: type("M", (), {"build_info": lambda: {}}))
    monkeypatch.setattr(doctor.Path, "read_text", lambda self, **kw: maps)
    threads = doctor._threads()
    assert threads["OpenMP runtimes loaded"] == ["/a/libgomp.so.1", "/b/libgomp-2.so.1.0.0"]
    assert "two OpenMP runtimes" in threads["advice"]


def doctor_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; from drf_fast import doctor\nsys.exit(doctor.run())",
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_torch_it_says_so_and_exits_1():
    done = doctor_process("import sys; sys.modules['torch'] = None")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("drf_fast is not usable: error: ModuleNotFoundError")
    assert "Traceback" not in done.stderr


def test_a_wrong_backend_variable_is_shown_and_exits_1():
    done = doctor_process("", DRF_FAST_BACKEND="fastest")
    assert done.returncode == 1, done.stderr
    assert "DRF_FAST_BACKEND names an unknown backend" in done.stdout
    assert re.search(r"^  DRF_FAST_BACKEND +fastest$", done.stdout, re.MULTILINE)


def test_the_fallback_is_usable_and_says_what_is_missing():
    done = doctor_process(
        "from drf_fast import _native\n"
        "_native._load = lambda name: (None, f'{name} was eaten; feed the cat')"
    )
    assert done.returncode == 0, done.stderr
    verdict = "drf_fast is usable on the reference backend, slower: _C was eaten; feed the cat"
    assert done.stdout.startswith(verdict)
