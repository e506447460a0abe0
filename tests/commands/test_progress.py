"""Progress: one line with rate, time left and the figures that matter; cheap where nobody looks."""

from __future__ import annotations

import io
import sys

import linear
import numpy as np
import pytest

from drf_fast.certification.engine import running
from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.report.summary import average_certified_radius, certified_accuracy
from drf_fast.runtime import progress
from drf_fast.runtime.progress import Tracker


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_note_is_made_only_where_it_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    made = []
    with Tracker("work", 1000) as tracker:
        for at in range(1000):
            tracker.advance(note=lambda at=at: made.append(at) or f"figure {at}")
    assert made[-1] == 999 and len(made) < 50
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "figure 999" in shown and "1000/1000" in shown


def test_plain_output_is_a_line_every_few_seconds(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    with Tracker("work", 2) as tracker:
        tracker.advance(note=lambda: "ACR 1.2")
        tracker.advance(note="ACR 1.3")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 1/2, ") and lines[0].endswith("s left ACR 1.2")
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
    assert last.endswith(expected)
    assert running(np.where(log.correct, log.radius, -1.0).tolist()) == expected


@pytest.mark.slow
def test_train_says_loss_accuracy_distance_and_lambda(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    words = ("--train-images", "256", "--epochs", "2", "--certify-images", "0", "--device", "cpu")
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/2")]
    for word in ("images/s", "loss", "% under noise", "distance", "lambda", "after it"):
        assert word in lines[0], lines[0]
