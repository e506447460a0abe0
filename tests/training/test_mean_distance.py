"""What lambda is for: the default brings the mean distance to epsilon and holds it there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drf_fast.commands.cli import main
from drf_fast.config.options import TrainConfig

EPSILON = TrainConfig().epsilon
# 75 steps an epoch of embedded images, one noisy copy of each, two steps of the adversary.
SMALL = [
    "--train-images", "4800", "--num-samples", "1", "--steps", "2", "--epochs", "2",
    "--certify-images", "0", "--threads", "1",
]  # fmt: skip


def after_the_first_epoch(folder: Path, *flags: str) -> float:
    """The mean distance of the second epoch."""
    assert main(["train", "--out", str(folder), *SMALL, *flags]) == 0
    _, second = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(second)["distance"]


@pytest.mark.slow
def test_after_the_first_epoch_the_mean_distance_of_the_default_is_epsilon(tmp_path):
    assert after_the_first_epoch(tmp_path / "r") == pytest.approx(EPSILON, rel=0.02)


@pytest.mark.slow
def test_excess_changed_once_an_epoch_stays_away_from_it(tmp_path):
    flags = ("--form", "excess", "--lambda-every", "epoch", "--lambda0", "0.5")
    assert after_the_first_epoch(tmp_path / "r", *flags) > 1.02 * EPSILON
