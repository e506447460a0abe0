"""What each setting means: the tags, and the sets that are made of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, get_args

import pytest

from drf_fast.certification import loading
from drf_fast.certification.log.sidecar import refuse_other_config
from drf_fast.commands.sweep import cost, grid
from drf_fast.config import arguments, choices, look, methods, options, tags, training, values
from drf_fast.config.look import GapConfig
from drf_fast.config.options import CertifyConfig, PredictConfig, SweepConfig, TrainConfig
from drf_fast.config.tags import Of, Range, Role, Tag
from drf_fast.errors import InputError
from drf_fast.runtime.machine import MEMORY_FORMATS
from drf_fast.training import dry_run

CONFIGS = [
    kind
    for module in (options, look)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and dataclasses.is_dataclass(kind)
    and kind.__module__ == module.__name__
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_says_what_it_is_for(config):
    assert set(tags.of(config)) == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (int, "must have one Role in its Annotated type, got 0"),
        (Annotated[int, Range.COUNT], "must have one Role in its Annotated type, got 0"),
        (
            Annotated[int, Role.RESULT, Role.SPEED],
            "must have one Role in its Annotated type, got 2",
        ),
        (Annotated[int, Role.RESULT, Range.COUNT, Range.FROM_ZERO], "must have one Range at most"),
    ],
)
def test_a_field_without_a_role_or_with_two_is_refused(hint, message):
    config = dataclasses.make_dataclass("Wrong", [("a", hint, 1)])
    with pytest.raises(TypeError, match=f"Wrong.a {message}"):
        tags.of(config)


def test_every_layout_of_weights_can_be_asked_for():
    """``runtime`` is below ``config`` and cannot read the choice."""
    assert get_args(choices.MemoryFormat) == ("auto", *MEMORY_FORMATS)


def test_a_method_that_a_setting_belongs_to_exists():
    assert set(methods.FLAGS) <= set(methods.NAMES)


def words(text: str) -> set[str]:
    return set(text.split())


CALL = "resume force json dry_run"
OF_THE_BALL = "lambda0 lambda_lr kappa form lambda_every tau"
SETS = {
    "may differ on resume": (
        training.FREE_ON_RESUME,
        f"{CALL} out config recipe data_dir max_steps save_every certify_images certify_n "
        "cuda_graph timeout",
    ),
    "measured": (training.MEASURED, "memory_format threads"),
    "not trained": (  # cuda_graph was missing
        training.NOT_TRAINED,
        f"{CALL} recipe config data_dir out max_steps device certify_images certify_n method_label "
        "left_out memory_format threads accumulate save_every cuda_graph init catrs_teacher "
        "timeout",
    ),
    "not in a dry run's TOML": (dry_run._NOT_SETTINGS, f"recipe config {CALL}"),
    # resume too: what resumes says so itself
    "not inherited": (arguments._NOT_INHERITED, f"{CALL} max_steps timeout"),
    "one per sweep": (  # dry_run was missing
        grid._FIXED,
        f"config data data_dir out device max_steps certify_images certify_n seed timeout {CALL} "
        "accumulate memory_format threads cuda_graph save_every",
    ),
    "same cost": (
        cost._FREE,
        "recipe config init lambda0 lambda_lr kappa tau sigma epsilon warmup_epochs "
        "consistency_lam consistency_eta stability_lam macer_lam macer_gamma macer_beta "
        "macer_after_drop mix_alpha mix_eta mix_warmup catrs_lam catrs_teacher catrs_n "
        "epochs lr lr_drops late_drop momentum nesterov weight_decay seed certify_images "
        "certify_n out max_steps save_every data_dir "
        f"timeout {CALL}",
    ),
    "soft ball": (training._DRF_FLAGS, OF_THE_BALL),
    "adversary": (training._ADVERSARY_FLAGS, "drf steps epsilon warmup_epochs grad_norm"),
    "stability": (methods.FLAGS["stability"], "stability_lam"),
    "macer": (methods.FLAGS["macer"], "macer_lam macer_gamma macer_beta macer_after_drop"),
    "smoothmix": (methods.FLAGS["smoothmix"], "mix_alpha mix_eta mix_step mix_warmup"),
    "consistency": (methods.FLAGS["consistency"], "consistency_lam consistency_eta"),
    "catrs": (methods.FLAGS["catrs"], "catrs_lam catrs_teacher catrs_n"),
    "counts": (
        tags.having(TrainConfig, Range.COUNT),
        "num_samples epochs batch_size kappa lambda_every train_images max_steps certify_n "
        "accumulate save_every threads catrs_n",
    ),
    "from zero": (
        tags.having(TrainConfig, Range.FROM_ZERO),
        "steps warmup_epochs certify_images lambda0 weight_decay momentum consistency_lam "
        "consistency_eta stability_lam macer_lam mix_eta mix_warmup catrs_lam",
    ),
    "above zero": (
        tags.having(TrainConfig, Range.ABOVE_ZERO),
        "epsilon lr lambda_lr tau macer_gamma macer_beta mix_alpha",
    ),
    "measured for a log": (loading._MEASURED, "batch_size precision memory_format"),
    "counts of certify": (
        tags.having(CertifyConfig, Range.COUNT),
        "n0 n skip max_images batch_size threads",
    ),
    "counts of sweep": (tags.having(SweepConfig, Range.COUNT), "n n0 certify_images skip"),
    "counts of predict": (
        tags.having(PredictConfig, Range.COUNT),
        "n skip max_images batch_size threads",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_the_sets_hold(name):
    derived, expected = SETS[name]
    assert set(derived) == words(expected)


def test_what_has_a_method_has_no_other_owner():
    for name, own in tags.of(TrainConfig).items():
        owners = [tag for tag in own if isinstance(tag, Of)]
        owners += [tag for tag in own if tag in (Tag.ADVERSARY, Tag.SOFT_BALL)]
        assert len(owners) <= 1, name


def test_commands_share_what_they_are_told_about_the_network():
    shared = set(tags.of(options.NetworkConfig))
    for config in (CertifyConfig, PredictConfig, GapConfig):
        assert shared <= set(tags.of(config))


def test_a_log_of_before_that_recorded_cuda_graph_goes_on(tmp_path):
    new = {"n": 10, "training": {"lr": 0.1}}
    old = json.loads(json.dumps({"n": 10, "training": {"lr": 0.1, "cuda_graph": False}}))
    refuse_other_config(tmp_path / "log.tsv", old, new)
    with pytest.raises(InputError, match="training"):
        refuse_other_config(tmp_path / "log.tsv", old, {"n": 10, "training": {"lr": 0.2}})


@pytest.mark.parametrize("words", [["--out=~/runs/x"], ["--out", "~/runs/x"]])
def test_a_home_folder_is_not_a_folder_of_that_name(monkeypatch, tmp_path, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.parse_train(words).out == tmp_path / "runs" / "x"
    assert arguments.parse(CertifyConfig, "certify", ["r", *words]).out == tmp_path / "runs" / "x"
    (tmp_path / "a.toml").write_text('data = "mnist"\ndata_dir = "~/images"\n')
    config = arguments.parse_train(["--config=~/a.toml"])
    assert config.data_dir == tmp_path / "images"


def test_a_run_in_the_home_folder_goes_on_with_its_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = dataclasses.replace(TrainConfig(), sigma=1.0, out=tmp_path / "r")
    (tmp_path / "r").mkdir()
    recorded = {**values.to_dict(config), "method_label": "smoothadv+drf"}
    (tmp_path / "r" / "config.json").write_text(json.dumps(recorded))
    assert arguments.parse_train(["--out=~/r", "--resume"]).sigma == 1.0
