"""The plan of a sweep, before a run starts: what it refuses, how runs certify, what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drf_fast.commands.cli import main
from drf_fast.commands.sweep import cost, grid, plan
from drf_fast.commands.sweep.run import Clock
from drf_fast.config import arguments, run_files
from drf_fast.config.options import SweepConfig
from drf_fast.errors import InputError, RunError


def test_a_network_of_a_sweep_is_certified_as_after_training():
    flags = ["--threads", "3", "--precision", "bf16", "--compile"]
    flags += ["--data", "mnist", "--data-dir", "d"]
    sweep = plan.make(SweepConfig(seeds="0"), flags)
    terms = sweep.certify_config(Path("s"), sweep.runs[0].config, 1000)
    expected: dict[str, Any] = {"n": 10_000, "n0": 100, "alpha": 0.001}  # of the help
    expected |= {"skip": 10, "max_images": 100, "data_dir": Path("d"), "precision": "bf16"}
    expected |= {"threads": 3, "compile": True, "checkpoint": Path("s"), "arch": None}
    assert {name: getattr(terms, name) for name in expected} == expected
    every = plan.make(SweepConfig(seeds="0", skip=7), []).certify_config(
        Path("s"), sweep.runs[0].config, 1000
    )
    assert (every.skip, every.max_images) == (7, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to sweep"),
        (["--vary", "lambda0"], "a flag of train and its values"),
        (["--vary", "lamda0=1"], "did you mean 'lambda0'"),
        (["--vary", "lambda0="], "needs one value or more, got none"),
        (["--vary", "lambda0=a"], "expected float, got 'a'"),
        (["--vary", "lambda0=1,,2"], "separated by single commas"),
        (["--vary", "lambda0=1,1.0"], "got 1 twice"),
        (["--vary", "lambda0=-1"], "--lambda0 must be 0 or more"),
        (["--vary", "lambda0=1", "--vary", "lambda0=2"], "is given twice"),
        (["--vary", "kappa=0.5"], "expected int, got 0.5"),
        (["--vary", "seed=1"], "--seeds 0,1,2"),
        (["--vary", "data=mnist"], "cannot be varied within a sweep"),
        (["--vary", "accumulate=1,2"], "cannot be varied within a sweep"),
        (["--vary", "lambda0=1", "--lambda0", "2"], "fixed and varied at once"),
        (["--vary", "lambda0=1,2", "--method", "gaussian"], "would have no effect"),
        (["--vary", "method=gaussian,smoothadv", "--consistency-lam", "2"], "no effect"),
        (["--vary", "recipe=foo"], "--recipe must be one of"),
        (["--seeds", ""], "--seeds must be integers"),
        (["--seeds", "0,0"], "got 0 twice"),
        (["--seeds", "0", "--seed", "1"], "pass one of them"),
        (["--seeds", "0", "--certify-images", "3", "--skip", "2"], "pass one of them"),
        (["--seeds", "0", "--n", "0"], "--n must lie between 1"),
        (["--seeds", "0", "--skip", "0"], "--skip must lie between 1"),
        (["--seeds", "0", "--certify-images", "0"], "--certify-images must lie between 1"),
        (["--seeds", "0", "--certify-images", str(2**32)], "--certify-images must lie between 1"),
        (["--seeds", "0", "--alpha", "2"], "--alpha must be a probability"),
        (["--seeds", "0", "--certify-n", "5"], "expected --n"),
        (["--seeds", "0", "--resume"], "expected --out FOLDER"),
        (["--seeds", "0", "--resume", "--force"], "pass one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_key_of_a_file_that_no_run_uses_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text("consistency-lam = 2.0\n")
    sweep, words = SweepConfig(vary=("method=gaussian,smoothadv",)), ["--config", "a.toml"]
    with pytest.raises(InputError, match="--consistency-lam would have no effect"):
        plan.make(sweep, words)
    sweep = SweepConfig(vary=("method=gaussian,consistency",))  # one of these uses it
    assert [run.config.consistency_lam for run in plan.make(sweep, words).runs] == [2.0, 2.0]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"format": "drf_fast sweep 1", "vary": 3}', "[" * 100_000]
)
def test_a_damaged_description_is_refused(tmp_path, content, capsys):
    (tmp_path / run_files.SWEEP).write_text(content)
    assert main(["sweep", "--seeds", "0", "--resume", "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_description_cannot_name_folders_elsewhere(tmp_path):
    folder = tmp_path / "run" / "sweep"
    (folder / "own").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (folder / "own" / "config.json").write_text("{}")
    sweep = plan.Sweep(folder, {}, (0,), {}, dict(plan._CERTIFICATION), [])
    sweep.save()
    content = json.loads((folder / run_files.SWEEP).read_text())
    content["runs"] = ["..", ".", "../..", "own"]
    (folder / run_files.SWEEP).write_text(json.dumps(content))
    assert plan._old_runs(folder) == [folder / "own"]


def test_the_example_of_the_help_varies_what_has_an_effect():
    """With the recipe's form, lambda0 has none: lambda changes at every step."""
    words = str(SweepConfig.__doc__).partition("drf-fast sweep ")[2].replace("\\\n", "").split()
    config, others = arguments.parse_sweep(words)
    (base,) = grid.bases_of(others, grid.parse_vary(config.vary)).values()
    assert (base.form, base.lambda_every) == ("excess", "epoch") and config.seeds == "0,1,2"


def test_a_trial_of_catrs_counts_one_vote_of_the_teacher(monkeypatch):
    tried = []

    def train(config):
        tried.append((config.method, config.catrs_n))
        raise RunError("the trial ends here")

    monkeypatch.setattr(cost.loop, "train", train)
    bases = grid.bases_of(["--recipe", "mnist-catrs"], {})
    (run,) = grid.expand(bases, {}, (0,), set())
    sweep = plan.Sweep(Path("s"), {}, (0,), bases, {}, [run])
    cost.measure(sweep)
    assert tried == [("catrs", 1)] and run.config.catrs_n == 10_000


def test_the_predicted_time_of_catrs_counts_the_votes_of_its_teacher():
    bases = grid.bases_of(["--recipe", "mnist-catrs", "--epochs", "2"], {})
    (run,) = grid.expand(bases, {}, (0,), set())
    found = {"step_seconds": 0.25, "epoch_steps": 8, "vote_seconds": 0.5}
    found |= {"epoch_seconds": 3.0, "certify_seconds": 5.0}
    sweep = plan.Sweep(Path("s"), {}, (0,), bases, {}, [run], {cost.cost_key(run.config): found})
    assert cost.seconds(sweep, run.config) == 10_000 * 0.5 + 2 * (8 * 0.25 + 3) + 5


def test_time_left_follows_what_runs_really_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock([10.0, 20.0, None])
    assert clock.left() == "about 45 s"  # the unknown one taken for an average one
    now[0] = 20.0  # twice as slow as predicted
    clock.advance()
    assert clock.left() == "about 70 s"
