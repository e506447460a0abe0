"""Progress: one line with rate, time left and the figures that matter; cheap where nobody looks."""

from __future__ import annotations

import io
import re
import sys

import linear
import numpy as np
import pytest

from drf_fast.certification.engine import running
from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.report.summary import average_certified_radius, certified_accuracy
from drf_fast.runtime import progress
from drf_fast.runtime.progress import Tracker, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(raw: str) -> list[str]:
    """The lines that a terminal shows in the end: it knows to go up a line and to erase one."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", raw):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1] or 1)
        elif part[0] not in "\x1b\r":
            lines[row] += part
    return [line.strip() for line in lines if line.strip()]


def test_a_note_is_made_only_where_it_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    made = []
    with Tracker("work", 1000) as tracker:
        for at in range(1000):
            tracker.advance(note=lambda at=at: made.append(at) or f"figure {at}")
    assert made[-1] == 999 and len(made) < 50
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "figure 999" in shown and "1000/1000" in shown


def test_a_terminal_has_one_line_and_what_is_said_scrolls_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    with Tracker("work", 8, done=5) as tracker:
        for at in range(3):
            tracker.advance(note=f"figure {at}")
            say(f"said {at}")
    raw = sys.stderr.getvalue()  # type: ignore[attr-defined]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", raw)
    assert re.search(r"work 5/8 [0-9:-]+ left ", plain), plain
    lines = on_screen(raw)
    assert lines[:3] == ["said 0", "said 1", "said 2"]
    assert len(lines) == 4 and re.fullmatch(r"work 8/8 [0-9:]+ figure 2", lines[3]), lines


def test_a_narrow_terminal_cuts_the_figures_and_keeps_the_count(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    with Tracker("certify", 5) as tracker:
        tracker.advance(5, note="ACR 0.810, certified 100/100/0 % at 0/0.5/1 [b], 4,528 samples/s")
    (line,) = on_screen(sys.stderr.getvalue())  # type: ignore[attr-defined]
    assert re.fullmatch(r"certify 5/5 [0-9:]+ ACR 0\.810, .*\u2026", line) and len(line) <= 40, line


def test_stdout_stays_where_it_was_sent(monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", file)
    with Tracker("work", 1) as tracker:
        print("a result")
        tracker.advance()
    assert file.getvalue() == "a result\n" and "a result" not in terminal.getvalue()


def test_what_an_earlier_call_has_done_takes_no_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    clock = iter((0.0, 30.0, 60.0, 60.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Tracker("work", 10, done=6) as tracker:
        tracker.advance()
        tracker.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "work: 7/10, 90 s left", "work: 8/10, 60 s left", "work: 8/10 done in 60.0 s",
    ]  # fmt: skip


def test_plain_output_is_a_line_every_few_seconds(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    with Tracker("work", 2) as tracker:
        tracker.advance(note=lambda: "ACR 1.2")
        tracker.advance(note="ACR 1.3")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 1/2, ") and lines[0].endswith(" s left, ACR 1.2")
    assert lines[1].endswith("ACR 1.3") and lines[2].startswith("work: 2/2 done in")


def test_a_quiet_one_makes_no_note(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    with Tracker("work", 1, quiet=True) as tracker:
        tracker.advance(note=lambda: pytest.fail("nobody looks"))
    assert capsys.readouterr().err == ""


def test_the_running_figures_of_certify_are_those_of_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    linear.saved(tmp_path)
    out = tmp_path / "c.tsv"
    words = ("--arch", "linear:Linear", "--device", "cpu", "--n", "200", "--max-images", "15")
    assert main(["certify", str(tmp_path), *words, "--out", str(out)]) == 0
    said = capsys.readouterr().err.splitlines()
    last = next(line for line in said if "certify: 15/15, " in line)
    log = read_log(out)
    shares = "/".join(f"{100 * s:.0f}" for s in certified_accuracy(log, (0.0, 0.5, 1.0)))
    expected = f"ACR {average_certified_radius(log):.3f}, certified {shares} % at 0/0.5/1"
    assert f" left, {expected}, " in last and last.endswith(" samples/s")
    assert running(np.where(log.correct, log.radius, -1.0).tolist()) == expected


@pytest.mark.slow
def test_train_says_loss_accuracy_distance_and_lambda(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    words = ("--train-images", "256", "--epochs", "2", "--certify-images", "0", "--device", "cpu")
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("train: ")]
    assert [line.split(",")[0] for line in steps[:-1]] == [f"train: {i}/8" for i in range(1, 9)]
    assert steps[-1].startswith("train: 8/8 done in ")
    for word in ("images/s", "loss", "% under noise", "distance", "lambda"):
        assert word in steps[0], steps[0]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert all("test accuracy under noise" in line for line in epochs)
