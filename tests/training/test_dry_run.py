"""``drf-fast train --dry-run``: what would run, how long it would take, and nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drf_fast.commands.cli import main
from drf_fast.config.arguments import parse_train, tomllib
from drf_fast.config.values import to_dict

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
