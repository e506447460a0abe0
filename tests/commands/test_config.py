"""Flags, TOML files and recipes: which wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drf_fast.config import methods, recipes
from drf_fast.config.arguments import parse_train
from drf_fast.config.options import TrainConfig
from drf_fast.config.training import uses_drf
from drf_fast.config.values import updated
from drf_fast.errors import InputError


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_file_the_file_over_the_recipe_the_recipe_over_defaults(tmp_path):
    file = write(tmp_path / "run.toml", 'recipe = "mnist-smoothadv"\nlr = 0.3\nepochs = 5\n')
    config = parse_train(["--config", file, "--epochs", "7"])
    assert config.epochs == 7  # flag
    assert config.lr == 0.3  # file
    assert config.batch_size == recipes.get("mnist-smoothadv", 0.5)["batch_size"] == 256  # recipe
    assert config.seed == TrainConfig().seed  # default
    assert not config.drf


def test_a_file_may_spell_keys_like_flags(tmp_path):
    file = write(tmp_path / "run.toml", "batch-size = 8\nlr_drops = [0.5]\nlambda-every = 'epoch'")
    config = parse_train(["--config", file])
    assert (config.batch_size, config.lr_drops, config.lambda_every) == (8, (0.5,), "epoch")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "run.toml").write_text("batch_size = 8", encoding="utf-8-sig")
    assert parse_train(["--config", str(tmp_path / "run.toml")]).batch_size == 8


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_is_a_valid_configuration(name):
    from drf_fast.config.training import check, method_label

    for sigma in recipes.SIGMAS:
        config = parse_train(["--recipe", name, "--sigma", str(sigma)])
        check(config)
        data, _, label = name.partition("-")
        assert config.data == data
        assert method_label(config) == label.removesuffix("-adv").replace("-drf", "+drf")


def test_there_is_a_recipe_for_every_method_on_both_data_sets():
    labels = {f"{method}{drf}" for method in methods.NAMES for drf in ("", "-drf")}
    labels -= {f"{method}-drf" for method in ("gaussian", "stability", "macer")}
    expected = {f"{data}-{label}" for data in ("mnist", "cifar10") for label in labels}
    assert set(recipes.NAMES) == expected | {"cifar10-consistency-adv"}


# PAPER: recipe, field, values at sigma 0.25, 0.5 and 1.
PUBLISHED = [
    ("mnist-stability", "stability_lam", (2.0, 2.0, 2.0)),
    ("mnist-macer", "macer_lam", (16.0, 16.0, 6.0)),
    ("mnist-macer", "macer_after_drop", (True, True, True)),
    ("mnist-macer", "num_samples", (16, 16, 16)),
    ("mnist-smoothmix", "steps", (2, 4, 8)),
    ("mnist-smoothmix", "mix_alpha", (1.0, 1.0, 1.0)),
    ("mnist-smoothmix", "mix_step", (0, 0, 0)),
    ("mnist-smoothmix", "num_samples", (4, 4, 4)),
    ("mnist-smoothmix", "mix_eta", (5.0, 5.0, 5.0)),
    ("mnist-smoothmix", "mix_warmup", (10, 10, 10)),
    ("mnist-macer", "macer_beta", (16.0, 16.0, 16.0)),
    ("mnist-macer", "macer_gamma", (8.0, 8.0, 8.0)),
    ("mnist-smoothadv", "num_samples", (4, 4, 4)),
    ("mnist-smoothadv", "steps", (10, 10, 10)),
    ("mnist-smoothadv", "epsilon", (255 / 256,) * 3),
    ("mnist-smoothadv", "warmup_epochs", (10, 10, 10)),
    ("mnist-smoothadv-drf", "lambda0", (1.0, 1.0, 1.0)),
    ("mnist-smoothadv-drf", "lambda_lr", (0.02, 0.02, 0.02)),
    ("mnist-smoothadv-drf", "kappa", (100, 100, 100)),
    ("mnist-consistency-drf", "lambda0", (2.0, 2.0, 2.0)),
    ("mnist-consistency-drf", "form", ("prox", "prox", "prox")),
    ("mnist-consistency-drf", "lambda_every", (1, 1, 1)),
    ("mnist-consistency", "consistency_lam", (1.0, 1.0, 1.0)),
    ("mnist-consistency", "epsilon", (255 / 256,) * 3),
    ("mnist-consistency", "consistency_eta", (0.5, 0.5, 0.5)),
    ("mnist-consistency", "num_samples", (4, 4, 4)),
    ("mnist-consistency", "steps", (10, 10, 10)),
    ("mnist-consistency", "warmup_epochs", (10, 10, 10)),
    ("mnist-consistency-drf", "lambda_lr", (0.02, 0.02, 0.02)),
    ("mnist-consistency-drf", "kappa", (100, 100, 100)),
    ("cifar10-stability", "stability_lam", (2.0, 2.0, 1.0)),
    ("cifar10-macer", "macer_lam", (12.0, 6.0, 12.0)),
    ("cifar10-smoothmix", "mix_alpha", (0.5, 1.0, 2.0)),
    ("cifar10-smoothmix", "mix_step", (0, 1, 1)),
    ("cifar10-smoothmix", "steps", (4, 4, 4)),
    ("cifar10-smoothmix", "num_samples", (2, 2, 2)),
    ("cifar10-smoothmix", "mix_eta", (5.0, 5.0, 5.0)),
    ("cifar10-macer", "num_samples", (16, 16, 16)),
    ("cifar10-macer", "macer_after_drop", (False, False, False)),
    ("cifar10-smoothadv", "steps", (10, 10, 10)),
    ("cifar10-smoothadv", "epsilon", (1.0, 1.0, 2.0)),
    ("cifar10-smoothadv", "warmup_epochs", (10, 10, 10)),
    ("cifar10-smoothadv", "num_samples", (4, 8, 2)),
    ("cifar10-smoothadv-drf", "epsilon", (1.0, 1.0, 2.0)),
    ("cifar10-consistency", "consistency_lam", (20.0, 10.0, 10.0)),
    ("cifar10-consistency", "steps", (0, 0, 0)),
    ("cifar10-consistency-drf", "consistency_lam", (1.0, 1.0, 1.0)),
    ("mnist-catrs", "catrs_lam", (1.0, 1.0, 1.0)),
    ("mnist-catrs", "num_samples", (4, 4, 4)),
    ("cifar10-catrs", "catrs_lam", (0.5, 1.0, 2.0)),
    ("cifar10-catrs", "catrs_n", (10_000,) * 3),
    ("cifar10-catrs", "steps", (4, 4, 4)),
    ("cifar10-catrs", "epsilon", (1.0, 1.0, 1.0)),
    ("cifar10-catrs-drf", "lambda0", (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(("name", "field", "values"), PUBLISHED)
def test_a_recipe_has_the_published_values_of_its_sigma(name, field, values):
    for sigma, value in zip(recipes.SIGMAS, values, strict=True):
        assert getattr(parse_train(["--recipe", name, "--sigma", str(sigma)]), field) == value


COMMON: dict[str, dict[str, Any]] = {
    "mnist": {"arch": "lenet", "augment": "none", "lr": 0.01, "epochs": 90},
    "cifar10": {"arch": "resnet110", "augment": "crop-flip", "lr": 0.1, "epochs": 150},
}  # fmt: skip


@pytest.mark.parametrize("name", recipes.NAMES)
def test_all_recipes_of_a_data_set_have_its_optimiser(name):
    expected = {
        **COMMON[name.partition("-")[0]],
        "batch_size": 256, "lr_drops": (1 / 3, 2 / 3), "momentum": 0.9, "nesterov": True,
        "weight_decay": 1e-4,
        "split_batches": False, "late_drop": False, "train_images": None, "grad_norm": "image",
    }  # fmt: skip
    for sigma in recipes.SIGMAS:
        config = parse_train(["--recipe", name, "--sigma", str(sigma)])
        assert {field: getattr(config, field) for field in expected} == expected
        assert uses_drf(config) == name.endswith("-drf")


@pytest.mark.parametrize(
    ("sigma", "row"), [(0.12, 0.25), (0.3, 0.25), (0.375, 0.5), (0.75, 1.0), (2.0, 1.0)]
)
def test_at_another_sigma_a_recipe_takes_the_nearest_values_and_says_so(capsys, sigma, row):
    config = parse_train(["--recipe", "mnist-smoothmix", "--sigma", str(sigma)])
    assert config.sigma == sigma
    assert config.steps == recipes.get("mnist-smoothmix", row)["steps"]
    assert f"its values are those for sigma {row:g}" in capsys.readouterr().err
    parse_train(["--recipe", "mnist-smoothmix", "--sigma", str(row)])
    parse_train(["--recipe", "mnist-smoothadv", "--sigma", str(sigma)])  # alike for all
    assert capsys.readouterr().err == ""


def test_the_sigma_of_a_file_chooses_the_values_of_its_recipe(tmp_path):
    text = 'recipe = "cifar10-smoothadv"\nsigma = 1.0\n'
    file = write(tmp_path / "run.toml", text)
    assert parse_train(["--config", file]).num_samples == 2
    assert parse_train(["--config", file, "--sigma", "0.5"]).num_samples == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgima = 0.5", "unknown key 'sgima'; did you mean 'sigma'?"),
        ("sigma = 'big'", "sigma: expected float, got 'big'"),
        ("epochs = 1.5", "epochs: expected int, got 1.5"),
        ("epochs = true", "epochs: expected int, got True"),
        ("form = 'round'", "expected prox or shrink or excess or udr, got 'round'"),
        ("sigma = ", "expected TOML, got something else"),
    ],
)
def test_a_bad_file_names_the_key_and_what_was_expected(tmp_path, text, expected):
    file = write(tmp_path / "bad.toml", text)
    with pytest.raises(InputError) as caught:
        parse_train(["--config", file])
    assert expected in str(caught.value) and "bad.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words", "ignored"),
    [
        ('method = "gaussian"\nlambda0 = 2.0\nsteps = 9', [], "--lambda0, --steps"),
        ("macer-lam = 3.0", [], "--macer-lam"),
        ("drf = false\nkappa = 50", ["--sigma", "1"], "--kappa"),
        ('recipe = "mnist-gaussian"\nepsilon = 0.5', [], "--epsilon"),
        ('recipe = "mnist-smoothmix"\nepsilon = 3.0', [], "--epsilon"),
        ('data-dir = "images"', [], "--data-dir"),
        ('data-dir = "images"', ["--data", "mnist"], None),
        ("macer_lam = 3.0", ["--method", "macer"], None),  # a flag may complete the file
        ("lambda0 = 2.0", ["--method", "gaussian"], None),  # or override it
        ("lambda0 = 2.0", ["--no-drf"], None),
        ('method = "gaussian"\ndrf = false\nlambda0 = 1.0', [], None),  # which hold anyway
        ('recipe = "mnist-smoothmix"\nepsilon = 2.0', [], None),
    ],
)
def test_a_key_of_a_file_that_the_method_ignores_is_refused_as_a_flag_is(
    tmp_path, text, words, ignored
):
    file = write(tmp_path / "run.toml", text)
    if ignored is None:
        parse_train(["--config", file, *words])
        return
    with pytest.raises(InputError, match=rf"run\.toml: {ignored} would have no effect with "):
        parse_train(["--config", file, *words])


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
