"""Flags, TOML files and recipes: which wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drf_fast import recipes
from drf_fast.arguments import parse_train
from drf_fast.config import TrainConfig, updated
from drf_fast.errors import InputError


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_file_the_file_over_the_recipe_the_recipe_over_defaults(tmp_path):
    file = write(tmp_path / "run.toml", 'recipe = "mnist-smoothadv"\nlr = 0.3\nepochs = 5\n')
    config = parse_train(["--config", file, "--epochs", "7"])
    assert config.epochs == 7  # flag
    assert config.lr == 0.3  # file
    assert config.batch_size == recipes.get("mnist-smoothadv")["batch_size"] == 256  # recipe
    assert config.seed == TrainConfig().seed  # default
    assert not config.drf


def test_a_file_may_spell_keys_like_flags(tmp_path):
    file = write(tmp_path / "run.toml", "batch-size = 8\nlr_drops = [0.5]\nlambda-every = 'epoch'")
    config = parse_train(["--config", file])
    assert (config.batch_size, config.lr_drops, config.lambda_every) == (8, (0.5,), "epoch")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_is_a_valid_configuration(name):
    from drf_fast.train import check, method_label

    config = parse_train(["--recipe", name])
    check(config)
    assert method_label(config) == name.removeprefix("mnist-").replace("-drf", "+drf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgima = 0.5", "unknown key 'sgima'; did you mean 'sigma'?"),
        ("sigma = 'big'", "sigma: expected float, got 'big'"),
        ("epochs = 1.5", "epochs: expected int, got 1.5"),
        ("epochs = true", "epochs: expected int, got True"),
        ("form = 'round'", "expected prox or excess or shrink, got 'round'"),
        ("sigma = ", "is not TOML"),
    ],
)
def test_a_bad_file_names_the_key_and_what_was_expected(tmp_path, text, expected):
    file = write(tmp_path / "bad.toml", text)
    with pytest.raises(InputError) as caught:
        parse_train(["--config", file])
    assert expected in str(caught.value) and "bad.toml" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or directory; check --config"):
        parse_train(["--config", str(tmp_path / "none.toml")])


def test_an_int_is_a_float_but_not_the_reverse():
    assert updated(TrainConfig(), {"sigma": 1}, "test").sigma == 1.0
    with pytest.raises(InputError):
        updated(TrainConfig(), {"epochs": 1.0}, "test")


@pytest.mark.parametrize("words", [["--epocs", "1"], ["--epochs", "many"], ["--lr"]])
def test_a_bad_flag_exits_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_train(words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err
