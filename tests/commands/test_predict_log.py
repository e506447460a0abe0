"""The log of predict, and its warning."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from drf_fast import data, models
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    config = {"sigma": 0.5, "data": "mnist-mini", "method_label": "gaussian", "lr": 0.1}
    model = models.build("lenet", 10, (1, 28, 28)).state_dict()
    content = {"model": model, "arch": "lenet", "num_classes": 10, "image_shape": [1, 28, 28]}
    checkpoint.save(path, {**content, "config": config})
    return path


def predict(network, *words: str) -> int:
    flags = ("--max-images", "3", "--batch-size", "16", "--device", "cpu")
    return main(["predict", str(network), *flags, *words])


def test_its_settings_lie_beside_it_and_report_reads_both(network, tmp_path, capsys):
    out = tmp_path / "p.tsv"
    assert predict(network, "--n", "20", "--out", str(out)) == 0
    config = json.loads((tmp_path / "p.json").read_text())
    assert config["training"]["lr"] == 0.1  # so that another training is another row
    assert (config["n"], config["alpha"], config["sigma"]) == (20, 0.001, 0.5)
    assert config["memory_format"] in ("contiguous", "channels_last")
    assert (config["compile"], config["device"]) == (False, "cpu")
    capsys.readouterr()
    assert main(["report", str(out), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predictions"] and (found["n"], found["groups"][0]["method"]) == (20, "gaussian")


@pytest.mark.parametrize(("n", "warned"), [(10, True), (11, False)])
def test_it_warns_where_every_image_must_abstain(network, capsys, n, warned):
    assert predict(network, "--n", str(n), "--alpha", ".001") == 0
    shown = capsys.readouterr()
    assert ("every image must abstain; 11 samples can" in shown.err) == warned
    if warned:
        assert {line.split("\t")[2] for line in shown.out.splitlines()[1:]} == {"-1"}


def test_it_replaces_its_own_log_and_nothing_else(network, tmp_path, capsys):
    (tmp_path / "p.json").write_text('{"lr": 0.1}')
    out = str(tmp_path / "p.tsv")
    assert predict(network, "--n", "20", "--out", out) == 2
    assert "p.json exists" in capsys.readouterr().err
    assert predict(network, "--n", "20", "--out", out, "--force") == 2
    assert "does not belong to a log" in capsys.readouterr().err
    assert json.loads((tmp_path / "p.json").read_text()) == {"lr": 0.1}
    (tmp_path / "p.json").unlink()
    assert predict(network, "--n", "20", "--out", out) == 0
    assert predict(network, "--n", "30", "--out", out, "--force") == 0
    assert json.loads((tmp_path / "p.json").read_text())["n"] == 30
    assert predict(network, "--n", "20", "--out", str(tmp_path / "a.json")) == 2


@pytest.mark.parametrize(("alpha", "warned"), [("0.95", True), ("0.1", False)])
def test_a_confidence_in_place_of_alpha_is_said(network, capsys, alpha, warned):
    assert predict(network, "--n", "10", "--alpha", alpha) == 0
    said = "warning: alpha 0.95 is the probability of an error, not the confidence: was 0.05 meant?"
    assert (said in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("words", "of"),
    [
        (("--max-images", "20"), "1 of 10"),
        (("--max-images", "24", "--skip", "5"), "2 of 10"),
        (("--max-images", "20", "--skip", "31"), None),
        (("--max-images", "8"), None),  # too few to tell
    ],
)
def test_images_of_few_classes_are_said(network, capsys, monkeypatch, words, of):
    images = data.load("mnist-mini", "test", limit=600)
    ordered = dataclasses.replace(images, labels=torch.arange(600) // 60)
    monkeypatch.setattr(data, "load", lambda *_, **__: ordered)
    assert predict(network, "--n", "2", *words) == 0
    said = capsys.readouterr().err
    assert (f"images chosen are of {of} classes" in said and "; --skip " in said) == bool(of)
    assert ("images chosen" in said) == bool(of)
