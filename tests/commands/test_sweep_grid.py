"""The grid of a sweep: values of every kind, and the settings that its runs share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drf_fast.commands.sweep import cost, grid
from drf_fast.errors import InputError


def test_values_of_every_kind():
    texts = ["drf=true,false", "lambda-every=1,epoch", "lr_drops=[0.5],[0.5,0.75]", "form=prox"]
    assert grid.parse_vary(texts) == {
        "drf": (True, False),
        "lambda_every": (1, "epoch"),
        "lr_drops": ((0.5,), (0.5, 0.75)),
        "form": ("prox",),
    }


def test_recipes_can_be_compared_under_common_flags():
    values = grid.parse_vary(["recipe=mnist-gaussian,mnist-smoothadv-drf"])
    bases = grid.bases_of(["--epochs", "3", "--steps", "2"], values)
    runs = grid.expand(bases, values, (0,), {"epochs", "steps"})
    assert [(run.config.method, run.config.epochs) for run in runs] == [
        ("gaussian", 3), ("smoothadv", 3),
    ]  # fmt: skip


def test_the_values_of_a_recipe_follow_a_varied_sigma():
    values = grid.parse_vary(["recipe=mnist-macer", "sigma=0.5,1"])
    runs = grid.expand(grid.bases_of([], values), values, (0,), set())
    assert [(run.config.sigma, run.config.macer_lam) for run in runs] == [(0.5, 16.0), (1.0, 6.0)]
    fixed = grid.parse_vary(["sigma=0.5,1"])
    earlier = grid.bases_of(["--recipe", "mnist-macer"], fixed)
    assert [base.macer_lam for base in earlier.values()] == [16.0, 6.0]
    with pytest.raises(InputError, match="expected --recipe"):
        grid.bases_of([], grid.parse_vary(["sigma=0.5,2"]), earlier)
    plain = grid.bases_of(["--steps", "3"], grid.parse_vary(["sigma=0.5"]))
    more = grid.bases_of([], fixed, plain)
    assert [(base.sigma, base.steps) for base in more.values()] == [(0.5, 3), (1.0, 3)]


def test_runs_of_one_cost_are_measured_once():
    values = grid.parse_vary(["lambda0=1,2", "sigma=0.5,1", "steps=1,2"])
    runs = grid.expand(grid.bases_of([], values), values, (0, 1), set())
    keys = {run.config.steps: set() for run in runs}
    for run in runs:
        keys[run.config.steps].add(cost.cost_key(run.config))
    assert len(runs) == 16 and [len(found) for found in keys.values()] == [1, 1]
    assert keys[1] != keys[2]


def test_files_can_be_varied(tmp_path):
    values = grid.parse_vary(["init=a/run,b/run", "lambda0=1,2"])
    assert values["init"] == (Path("a/run"), Path("b/run"))
    saved = json.loads(json.dumps(grid.plain(values)))
    assert {name: grid.check_values(name, of) for name, of in saved.items()} == values
