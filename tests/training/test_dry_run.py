"""``drf-fast train --dry-run``: what would run, how long it would take, and nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drf_fast.commands.cli import main
from drf_fast.config import recipes
from drf_fast.config.arguments import parse_train, tomllib
from drf_fast.config.training import uses_drf, without_effect
from drf_fast.config.values import to_dict
from drf_fast.training import dry_run

FLAGS = [
    "--train-images", "40", "--batch-size", "8", "--num-samples", "1", "--steps", "1",
    "--device", "cpu", "--memory-format", "contiguous", "--sigma", "0.25", "--dry-run",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_it_prints_settings_that_can_be_used_again_and_a_time(here, capsys):
    assert main(["train", *FLAGS]) == 0
    out = capsys.readouterr().out
    assert not list(here.iterdir())
    (here / "again.toml").write_text(out)
    again = parse_train(["--config", str(here / "again.toml")])
    first = parse_train(FLAGS)
    differ = {key for key, value in to_dict(first).items() if to_dict(again)[key] != value}
    assert differ == {"config", "dry_run", "threads", "normalize"}  # the last two were auto
    assert tomllib.loads(out)["sigma"] == 0.25
    assert re.search(r"# predicted: 30 steps of \d+ ms and 6 tests of .* make \d+", out)


def test_the_settings_are_printed_before_anything_is_measured(here, capsys, monkeypatch):
    """A large network takes minutes to measure; and there is nothing to resume."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("drf_fast.training.prepare._choose_memory_format", interrupted)
    words = [word for word in FLAGS if word not in ("--memory-format", "contiguous")]
    assert main(["train", *words]) == 130
    captured = capsys.readouterr()
    assert captured.err == "drf-fast: interrupted\n"
    (here / "again.toml").write_text(captured.out)
    again = to_dict(parse_train(["--config", str(here / "again.toml")]))
    first = to_dict(parse_train(words))
    differ = {key for key, value in first.items() if again[key] != value}
    assert differ == {"config", "dry_run", "threads", "normalize"}
    assert main(["train", *words, "--json"]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "flags"),
    [(name, ()) for name in recipes.NAMES]
    + [(name, ("--no-drf",)) for name in recipes.NAMES if name.endswith("-drf")],
)
def test_the_settings_of_every_recipe_can_be_used_again(here, capsys, name, flags):
    first = parse_train(["--recipe", name, *flags])
    dry_run.show_settings(first)
    (here / "again.toml").write_text(capsys.readouterr().out)
    again = parse_train(["--config", str(here / "again.toml")])
    differ = {key for key, value in to_dict(first).items() if to_dict(again)[key] != value}
    assert differ <= {"config", "recipe", *without_effect(first)}
    assert again.method == first.method and uses_drf(again) == uses_drf(first)


def test_names_of_any_characters_can_be_used_again(here, capsys):
    first = parse_train(["--data", "mnist", "--data-dir", '/x/😀 "é\\'])
    dry_run.show_settings(first)
    (here / "again.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    again = parse_train(["--config", str(here / "again.toml")])
    assert again.data_dir == first.data_dir


def test_one_step_and_one_test_are_in_the_singular(here, capsys):
    assert main(["train", *FLAGS, "--epochs", "1", "--max-steps", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"# predicted: 1 step of \d+ ms and 1 test of .* on cpu in fp32, cont", said)


def test_absent_data_is_not_downloaded_and_the_way_to_it_is_named(here, capsys, monkeypatch):
    monkeypatch.setenv("DRF_FAST_DATA", str(here / "cache"))
    arch = {"mnist": "lenet", "cifar10": "resnet20", "svhn": "resnet20"}
    for name, network in arch.items():
        words = ["--data", name, "--arch", network]
        for command in (["train", "--dry-run"], ["sweep", "--plan", "--vary", "lambda0=1,2"]):
            assert main([*command, *words]) == 2
            captured = capsys.readouterr()
            assert "missing: expected" in captured.err and captured.out == ""
            assert "or run without --dry-run or --plan" in captured.err
            assert not list(here.iterdir())


@pytest.mark.slow
def test_it_counts_what_is_left_and_writes_nothing_into_the_run(here, capsys):
    words = ["train", "--out", "run", *FLAGS[:-1], "--certify-images", "0"]
    assert main([*words, "--max-steps", "7"]) == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["train", "--out", "run", "--resume", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["predicted"]["steps"] == 30 - 7
    assert 0 < told["predicted"]["seconds_per_step"] < told["predicted"]["seconds"]
    assert told["settings"]["batch_size"] == 8
    after = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    assert after == before


def test_it_refuses_what_a_run_would_refuse(here, capsys):
    assert main(["train", *FLAGS, "--lr", "-1"]) == 2
    assert "--lr must be" in capsys.readouterr().err
    assert not list(here.iterdir())
