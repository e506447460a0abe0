"""``drf-fast sweep``: resuming after anything, failures, the table and the figures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drf_fast.certification.log import read_log
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.commands.sweep import figures, grid, plan, summary
from drf_fast.commands.sweep.summary import Result, Setting
from drf_fast.config import arguments
from drf_fast.report.summary import average_certified_radius

SMALL = [
    "--epochs", "1", "--train-images", "64", "--batch-size", "16", "--steps", "1", "--device",
    "cpu", "--memory-format", "contiguous", "--n", "60", "--n0", "20", "--alpha", "0.1",
    "--certify-images", "3",
]  # fmt: skip
GRID = ["--vary", "lambda0=0.5,2", "--seeds", "0,1"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def certificates(folder: Path) -> dict[str, list[tuple]]:
    """All but the time of each certificate, by run."""
    found = {}
    for path in sorted(folder.glob("*/certificates.tsv")):
        log = read_log(path)
        columns = (log.idx, log.predict, log.radius, log.count, log.n)
        assert all(column is not None for column in columns)
        found[path.parent.name] = list(zip(*(np.asarray(c).tolist() for c in columns), strict=True))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    assert main(["sweep", *GRID, *SMALL, "--out", str(folder)]) == 0
    return folder


def test_a_trial_leaves_the_threads_of_the_process_alone(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        words = ["sweep", "--plan", "--seeds", "0", "--threads", "1", *SMALL]
        assert main([*words, "--out", str(tmp_path / "s")]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_threads_hold_for_certification_too(tmp_path):
    flags = ["--vary", "lambda0=2", "--threads", "1", "--out", str(tmp_path / "one")]
    assert main(["sweep", *flags, *SMALL]) == 0
    (log,) = (tmp_path / "one").glob("*/certificates.json")
    assert json.loads(log.read_text())["environment"]["threads"] == 1


def test_a_sweep_leaves_runs_tables_and_figures(whole):
    assert {path.name for path in whole.iterdir()} == {
        "sweep.json", "summary.tsv", "summary.json", "runs.tsv", "certified_accuracy.png",
        "acr-lambda0.png", "lambda0=0.5_seed=0", "lambda0=0.5_seed=1", "lambda0=2_seed=0",
        "lambda0=2_seed=1", "page.html",
    }  # fmt: skip
    for picture in ("certified_accuracy.png", "acr-lambda0.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")


def test_the_table_is_the_mean_over_seeds_of_the_logs(whole):
    runs, points = rows_of(whole / "runs.tsv"), rows_of(whole / "summary.tsv")
    assert [(run["lambda0"], run["seed"]) for run in runs] == [
        ("0.5", "0"), ("0.5", "1"), ("2", "0"), ("2", "1"),
    ]  # fmt: skip
    assert [point["seeds"] for point in points] == ["2", "2"]
    for point in points:
        logs = [read_log(path) for path in whole.glob(f"lambda0={point['lambda0']}_*/*.tsv")]
        acr = [average_certified_radius(log) for log in logs]
        assert float(point["acr"]) == pytest.approx(np.mean(acr), abs=1e-6)
        assert float(point["acr_std"]) == pytest.approx(np.std(acr, ddof=1), abs=1e-6)
        right = np.mean([np.mean(log.correct) for log in logs])
        assert float(point["r0.00"]) == pytest.approx(100 * right, abs=1e-4)
    for run in runs:
        metrics = json.loads((whole / run["folder"] / "metrics.jsonl").read_text().splitlines()[-1])
        assert float(run["lambda"]) == pytest.approx(metrics["lambda"], abs=1e-6)
        assert float(run["distance"]) == pytest.approx(metrics["distance"], abs=1e-6)


def test_the_acr_of_one_seed_has_no_bar(monkeypatch, tmp_path):
    drawn: list[Any] = []
    monkeypatch.setattr(figures.style, "save", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(figures, "_title", lambda result: "")
    group: Any = None
    settings = tuple(
        Setting({"lambda0": value}, group, tuple({"acr": acr} for acr in of_seeds))
        for value, of_seeds in ((0.5, (0.3, 0.5)), (1.0, (0.6,)), (2.0, (0.7, 0.7)))
    )
    sweep: Any = SimpleNamespace(grid={"lambda0": (0.5, 1.0, 2.0)}, seeds=(0, 1))
    figures._draw_acr(Result(sweep, settings, (), ""), "lambda0", tmp_path / "acr.png")
    ((bars,),) = [axes.containers for axes in drawn[0].axes]
    for caps in bars.lines[1]:
        kept = np.isfinite(np.array(caps.get_ydata(), dtype=float))
        assert kept.tolist() == [True, False, True]
    assert bars.lines[0].get_ydata().tolist() == pytest.approx([0.4, 0.6, 0.7])


def test_runs_differ_in_what_is_varied_alone(whole):
    configs = [json.loads((path / "config.json").read_text()) for path in whole.glob("lambda0=*")]
    differ = {k for k in configs[0] if any(c[k] != configs[0][k] for c in configs)}
    assert differ == {"lambda0", "seed", "out"}


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_certificates_of_an_uninterrupted_one(whole, tmp_path):
    """SIGKILL from within, at the second certificate of the second run and again later."""
    code = (
        "import os, signal, sys\n"
        "from drf_fast.certification.log import CertificationLog as log\n"
        "from drf_fast.commands.cli import main\n"
        "left, real = [int(sys.argv[1])], log.append\n"
        "def append(self, row):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(self, row)\n"
        "log.append = append\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    out = ["--out", str(tmp_path / "s")]
    for count, words in ((4, [*GRID, *SMALL]), (3, ["--resume"])):
        done = subprocess.run(
            [sys.executable, "-c", code, str(count), "sweep", *words, *out], capture_output=True
        )
        assert done.returncode == -9, done.stderr.decode()
    assert main(["sweep", "--resume", *out]) == 0
    assert certificates(tmp_path / "s") == certificates(whole)


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_a_grid_can_grow(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/checkpoint.pt")}
    assert main(["sweep", *GRID, *SMALL, "--resume", "--out", str(whole)]) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
    words = ["--vary", "lambda0=0.5,2,3", "--resume", "--out", str(whole)]
    assert main(["sweep", *words, "--plan", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["finished"] for row in rows] == [True] * 4 + [False] * 2
    assert all(row["seconds"] > 0 for row in rows[4:])
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("*/checkpoint.pt")}


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path, capsys):
    words = ["sweep", "--vary", "lr=1e30,0.01", *SMALL, "--out", str(tmp_path / "s")]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "1 of 2 runs failed: lr=1e+30_seed=0" in captured.err.splitlines()[-1]
    assert [row["lr"] for row in rows_of(tmp_path / "s" / "summary.tsv")] == ["0.01"]
    assert list(json.loads((tmp_path / "s" / "sweep.json").read_text())["failed"]) == [
        "lr=1e+30_seed=0"
    ]


@pytest.mark.slow
def test_force_replaces_the_runs_of_a_sweep_and_no_other_files(tmp_path, capsys):
    words = ["sweep", "--seeds", "0", *SMALL, "--out", str(tmp_path)]
    (tmp_path / "mine.txt").write_text("x")
    assert main([*words, "--force"]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    (tmp_path / "mine.txt").unlink()
    assert main(words) == 0
    (tmp_path / "mine.txt").write_text("x")
    assert main(["sweep", "--seeds", "3", *SMALL, "--out", str(tmp_path), "--force"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert "seed=3" in names and "seed=0" not in names and "mine.txt" in names


def test_a_folder_has_one_sweep_at_a_time(whole, capsys):
    from drf_fast.runtime.files import locked

    with locked(whole):
        assert main(["sweep", "--resume", "--out", str(whole)]) == 2
    assert "being written by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "already holds files"),
        (["--resume", "--n", "70"], "expected --n 60"),
        (["--resume", "--epochs", "2"], "epochs (then 1, now 2)"),
        (["--resume", "--vary", "lambda0=x"], "expected float"),
    ],
    ids=str,
)
def test_a_sweep_in_the_folder_is_kept(whole, flags, message, capsys):
    before = (whole / "sweep.json").read_bytes()
    words = flags or [*GRID, *SMALL]
    assert main(["sweep", *words, "--out", str(whole)]) == 2
    assert message in capsys.readouterr().err
    assert (whole / "sweep.json").read_bytes() == before


def test_more_values_and_seeds_extend_a_sweep(whole):
    words = ["--resume", "--out", str(whole), "--seeds", "1,7", "--vary", "lambda0=3"]
    sweep = plan.make(*arguments.parse_sweep(words))
    assert sweep.seeds == (0, 1, 7) and sweep.grid == {"lambda0": (0.5, 2.0, 3.0)}
    assert [plan.finished(sweep, run) for run in sweep.runs] == 2 * [True, True, False] + 3 * [
        False
    ]
    words = ["--resume", "--out", str(whole), "--vary", "lambda-lr=0.1", "--seeds", "7"]
    other = plan.make(*arguments.parse_sweep(words))
    assert other.seeds == (7,) and other.grid == {"lambda_lr": (0.1,)}
    assert set(other.earlier) == {run.name for run in sweep.runs if plan.finished(sweep, run)}


@pytest.mark.slow
def test_a_trial_sweep_goes_on_without_its_limit(tmp_path, capsys):
    out = ["--out", str(tmp_path / "s")]
    assert main(["sweep", "--seeds", "0", *SMALL, "--max-steps", "1", *out]) == 0
    assert main(["sweep", "--resume", "--max-steps", "3", *out]) == 0
    network = checkpoint.load(tmp_path / "s" / "seed=0" / "checkpoint.pt")
    config = json.loads((tmp_path / "s" / "seed=0" / "certificates.json").read_text())
    assert network["step"] == 3 and config["checkpoint_sha256"] == network["sha256"]
    assert main(["sweep", "--resume", *out]) == 0
    network = checkpoint.load(tmp_path / "s" / "seed=0" / "checkpoint.pt")
    assert (network["step"], network["epoch"]) == (4, 1)
    capsys.readouterr()
    assert main(["sweep", "--resume", *out]) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_with_nothing_but_a_lock_is_a_new_one(tmp_path):
    for flag in ("--force", "--resume", "--plan"):
        folder = tmp_path / flag
        folder.mkdir()
        (folder / ".lock").touch()
        assert main(["sweep", "--seeds", "0", *SMALL, "--out", str(folder), flag]) == 0
        assert (folder / "summary.tsv").exists() == (flag != "--plan")


@pytest.mark.parametrize(
    ("varied", "expected"),
    [
        (
            "lambda0",
            "smoothadv+drf with lenet on the first 64 images of mnist-mini, sigma = 0.5, 1",
        ),
        ("arch", "smoothadv+drf on the first 64 images of mnist-mini, sigma = 0.5, 1 epoch"),
        ("train_images", "smoothadv+drf with lenet on mnist-mini, sigma = 0.5, 1 epoch"),
    ],
)
def test_the_label_has_what_all_runs_share(varied, expected):
    config = arguments.merged(SMALL[:4], "sweep", None)
    run = grid.SweepRun("a", {}, config)
    sweep: Any = SimpleNamespace(grid={varied: (1, 2)}, runs=[run])
    assert summary.label(Result(sweep, (), (), "")).startswith(expected)
