"""``drf-fast train``: what a run leaves behind, how it resumes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.errors import RunError
from drf_fast.training import loop

SMALL = [
    "--train-images", "192", "--epochs", "2", "--steps", "1", "--device", "cpu",
    "--memory-format", "contiguous",
]  # fmt: skip
UNCERTIFIED = ["--certify-images", "0"]


def train(folder: Path, *flags: str) -> int:
    return main(["train", "--out", str(folder), *SMALL, *flags])


def load(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoint.pt")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "run"
    assert train(folder, "--certify-images", "4", "--certify-n", "300") == 0
    return folder


def test_a_run_leaves_everything_that_describes_it(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "config.json", "checkpoint.pt", "metrics.jsonl", "tensorboard",
        "certificates.tsv", "certificates.json", "curve.png", "page.html",
    }  # fmt: skip
    assert (run_folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any((run_folder / "tensorboard").iterdir())
    metrics = [json.loads(line) for line in (run_folder / "metrics.jsonl").open()]
    assert [row["epoch"] for row in metrics] == [1, 2]
    assert {"loss", "lambda", "distance", "test_accuracy_under_noise", "lr"} <= set(metrics[0])
    config = json.loads((run_folder / "config.json").read_text())
    assert config["method_label"] == "smoothadv+drf"
    assert config["memory_format"] == "contiguous"
    assert config["environment"]["torch"] == torch.__version__


@pytest.mark.slow
def test_training_learns(tmp_path):
    flags = ["--method", "gaussian", "--train-images", "2000", "--lr", "0.05", *UNCERTIFIED]
    words = ["train", "--out", str(tmp_path / "r"), "--epochs", "2", "--device", "cpu", *flags]
    assert main(words) == 0
    metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").open()]
    assert metrics[-1]["test_accuracy_under_noise"] > 0.5  # chance is 0.1


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "smoothadv", "--no-drf"],
        ["--method", "smoothadv", "--form", "excess", "--lambda-every", "epoch"],
        ["--method", "consistency", "--form", "shrink", "--lambda-every", "2"],
        ["--method", "smoothadv", "--form", "udr", "--tau", "0.4", "--lambda-every", "10"],
        pytest.param(
            ["--method", "consistency", "--precision", "bf16", "--grad-norm", "batch"],
            marks=pytest.mark.slow,  # where bf16 is emulated
        ),
    ],
    ids=lambda flags: " ".join(flags[1:4]),
)
def test_every_adversary_and_loss_trains(tmp_path, flags):
    assert train(tmp_path / "r", "--max-steps", "2", *UNCERTIFIED, *flags) == 0
    assert load(tmp_path / "r")["step"] == 2


@pytest.mark.slow
def test_a_run_of_the_former_default_goes_on_as_what_it_was(tmp_path):
    former = {"form": "excess", "lambda_every": "epoch", "lambda0": 0.5}
    flags = ["--form", "excess", "--lambda-every", "epoch", "--lambda0", "0.5"]
    folder = tmp_path / "r"
    assert train(folder, "--max-steps", "2", *UNCERTIFIED, *flags) == 0
    # Its files, written before there was --tau.
    content, config = load(folder), json.loads((folder / "config.json").read_text())
    del content["config"]["tau"], config["tau"]
    checkpoint.save(folder / "checkpoint.pt", content)
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["train", "--out", str(folder), "--resume", *UNCERTIFIED]) == 0
    done = load(folder)
    assert done["step"] > 2 and former.items() <= done["config"].items()
    # Two epochs: lambda changed twice, each time by at most lambda_lr times the greatest distance.
    assert done["ball"]["updates"] == done["step"] and 0.4 < float(done["ball"]["lam"]) < 0.6


def test_tau_without_its_form_is_refused(tmp_path, capsys):
    assert train(tmp_path / "r", "--tau", "0.4") == 2
    assert "--tau belongs to --form udr, got --form prox" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        train(tmp_path / name, "--seed", seed, *UNCERTIFIED)
    a, b, c = (load(tmp_path / name)["model"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3, 4], ids=["inside an epoch", "at its end", "in the next"])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, stop):
    train(tmp_path / "whole", *UNCERTIFIED)  # 3 steps an epoch
    train(tmp_path / "parts", "--max-steps", str(stop), *UNCERTIFIED)
    assert load(tmp_path / "parts")["step"] == stop
    words = ["train", "--out", str(tmp_path / "parts"), "--resume", *UNCERTIFIED]
    assert main(words) == 0
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert parts["step"] == whole["step"] == 6
    assert all(torch.equal(whole["model"][key], parts["model"][key]) for key in whole["model"])
    assert torch.equal(whole["ball"]["lam"], parts["ball"]["lam"])
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "parts" / "metrics.jsonl").open()]
    assert epochs == [1, 2]


def test_resume_refuses_other_settings_and_names_them(run_folder, capsys):
    before = (run_folder / "checkpoint.pt").read_bytes()
    assert train(run_folder, "--resume", "--lr", "0.5") == 2
    assert "lr (then 0.05, now 0.5)" in capsys.readouterr().err
    assert (run_folder / "checkpoint.pt").read_bytes() == before


def test_an_existing_run_is_not_overwritten(run_folder, capsys):
    before = (run_folder / "checkpoint.pt").read_bytes()
    assert train(run_folder) == 2
    message = capsys.readouterr().err
    assert "--resume" in message and "--force" in message
    assert (run_folder / "checkpoint.pt").read_bytes() == before


def test_resume_refuses_other_images_under_the_same_name(tmp_path, capsys):
    train(tmp_path / "r", "--max-steps", "1", *UNCERTIFIED)
    saved = load(tmp_path / "r")
    saved["config"]["fingerprint"] = "another"
    checkpoint.save(tmp_path / "r" / "checkpoint.pt", saved)
    assert train(tmp_path / "r", "--resume", *UNCERTIFIED) == 2
    assert "training images" in capsys.readouterr().err


def test_resume_does_not_ignore_a_file_of_other_settings(tmp_path, capsys):
    train(tmp_path / "r", "--max-steps", "1", *UNCERTIFIED)
    (tmp_path / "other.toml").write_text("sigma = 0.25")
    words = ["train", "--out", str(tmp_path / "r"), "--resume"]
    assert main([*words, "--config", str(tmp_path / "other.toml")]) == 2
    assert "sigma (then 0.5, now 0.25)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "", "garbage\n", "[1]\n"], ids=str)
def test_resume_survives_lost_metrics(tmp_path, content):
    train(tmp_path / "r", "--max-steps", "3", *UNCERTIFIED)
    path = tmp_path / "r" / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    assert main(["train", "--out", str(tmp_path / "r"), "--resume", *UNCERTIFIED]) == 0
    assert json.loads(path.read_text().splitlines()[-1])["epoch"] == 2


def test_resume_refuses_a_broken_configuration(tmp_path, capsys):
    train(tmp_path / "r", "--max-steps", "1", *UNCERTIFIED)
    (tmp_path / "r" / "config.json").write_text("[1, 2]")
    assert main(["train", "--out", str(tmp_path / "r"), "--resume"]) == 2
    assert "expected the settings of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_stopped_and_certified_is_certified_anew_when_it_goes_on(tmp_path):
    certified = ["--certify-images", "2", "--certify-n", "100"]
    train(tmp_path / "r", "--max-steps", "1", *certified)
    words = ["train", "--out", str(tmp_path / "r"), "--resume", *certified]
    assert main(words) == 0
    sidecar = json.loads((tmp_path / "r" / "certificates.json").read_text())
    assert sidecar["checkpoint_sha256"] == checkpoint.sha256(tmp_path / "r" / "checkpoint.pt")


@pytest.mark.slow
def test_json_holds_the_metrics_and_the_report(tmp_path, capsys):
    assert train(tmp_path / "r", "--json", "--certify-images", "2", "--certify-n", "100") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["epoch"] == 2
    assert result["report"]["groups"][0]["method"] == "smoothadv+drf"


@pytest.mark.slow
def test_force_removes_the_old_network_before_it_trains(tmp_path):
    train(tmp_path / "r", "--certify-images", "2", "--certify-n", "100")
    assert train(tmp_path / "r", "--force", "--lr", "1e12", *UNCERTIFIED) == 1  # diverges
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard",
    }  # fmt: skip


def test_a_diverged_run_is_not_saved(tmp_path, capsys):
    flags = ["--method", "gaussian", "--train-images", "320", "--save-every", "1", *UNCERTIFIED]
    words = ["train", "--out", str(tmp_path / "r"), "--device", "cpu", *flags]
    assert main([*words, "--max-steps", "3", "--lr", "1e12"]) == 1
    assert "training diverged; lower --lr" in capsys.readouterr().err
    saved = load(tmp_path / "r")  # of the step before
    assert all(bool(weight.isfinite().all()) for weight in saved["model"].values())


def test_a_weight_or_a_loss_that_is_no_number_is_not_saved(monkeypatch):
    def never(run: Any) -> None:
        raise AssertionError("saved")

    monkeypatch.setattr(loop.state, "save", never)
    for weight, loss in ((torch.inf, 1.0), (1.0, torch.nan)):
        model = torch.nn.Linear(1, 1)
        model.weight.data.fill_(weight)
        totals = SimpleNamespace(sums=torch.tensor([loss, 0, 0]), images=1)
        run: Any = SimpleNamespace(totals=totals, epoch=0, model=model)
        with pytest.raises(RunError, match="in epoch 1: training diverged|of epoch 1 is nan"):
            loop._save(run)


@pytest.mark.parametrize("flag", ["--force", "--resume"])
@pytest.mark.parametrize("name", ["config.json", "tensorboard", "checkpoint.pt"])
def test_files_of_another_program_are_not_replaced(tmp_path, capsys, name, flag):
    if name == "config.json":
        (tmp_path / name).write_text('{"model_type": "vit"}')
    elif name == "checkpoint.pt":
        torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / name)
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "events").write_text("theirs")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert train(tmp_path, flag, "--max-steps", "1", *UNCERTIFIED) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} holds no run of drf_fast" in error and f"got {name} of another" in error
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


@pytest.mark.slow
def test_a_finished_run_is_certified_anew_with_other_settings(tmp_path):
    for flags in (
        ["--certify-n", "100", "--certify-images", "2"],
        ["--certify-n", "200", "--certify-images", "2"],
        ["--certify-n", "200", "--certify-images", "3"],
    ):
        assert train(tmp_path / "r", "--resume", "--max-steps", "1", *flags) == 0
        sidecar = json.loads((tmp_path / "r" / "certificates.json").read_text())
        assert [str(sidecar[name]) for name in ("n", "indices_total")] == flags[1::2]
        written = (tmp_path / "r" / "certificates.tsv").read_text()  # with the times
    assert train(tmp_path / "r", "--resume", "--max-steps", "1", *flags) == 0
    assert (tmp_path / "r" / "certificates.tsv").read_text() == written


@pytest.mark.slow
def test_force_replaces_a_run(tmp_path):
    train(tmp_path / "r", "--seed", "3", *UNCERTIFIED)
    assert train(tmp_path / "r", "--force", *UNCERTIFIED) == 0
    assert load(tmp_path / "r")["config"]["seed"] == 0
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sigma", "0"], "--sigma must be a finite number above 0"),
        (["--sigma", "nan"], "--sigma must be a finite number above 0"),
        (["--epochs", "0"], "--epochs must lie between 1 and 2^32 - 1, got 0"),
        (["--method", "macaroni"], "--method must be one of gaussian, stability"),
        (["--arch", "vgg"], "--arch must be one of lenet"),
        (["--data", "cifar"], "mnist-mini"),
        (["--recipe", "mnist"], "--recipe must be one of mnist-gaussian"),
        (["--lr-drops", "2"], "--lr-drops must be fractions between 0 and 1"),
        (["--momentum", "0"], "--no-nesterov"),
        (["--momentum", "1.5"], "--momentum must be below 1"),
        (["--kappa", "5000000000"], "--kappa must lie between 1"),
        (["--steps", "0"], "--method smoothadv needs --steps"),
        (["--resume", "--force"], "pass one of them"),
        (["--method", "gaussian", "--epsilon", "2"], "--epsilon would have no effect"),
        (["--no-drf", "--kappa", "50"], "--kappa would have no effect"),
        (["--consistency-lam", "2"], "--consistency-lam would have no effect"),
        (["--catrs-teacher", "runs/g"], "--catrs-teacher would have no effect"),
        (["--method", "catrs", "--catrs-lam", "-1"], "--catrs-lam must be 0 or more"),
        (["--method", "catrs"], "--method catrs needs --catrs-teacher"),
        (["--method", "macer", "--mix-eta", "2"], "--mix-eta would have no effect"),
        (["--method", "stability", "--steps", "2"], "--steps would have no effect"),
        (["--method", "smoothmix", "--no-drf", "--epsilon", "2"], "its adversary has no ball"),
        (["--method", "smoothmix", "--steps", "1", "--mix-step", "1"], "--steps above --mix-step"),
        (["--method", "smoothmix", "--mix-alpha", "0"], "--mix-alpha must be a finite number"),
        (["--method", "macer", "--macer-beta", "0"], "--macer-beta must be a finite number"),
        (["--method", "stability", "--stability-lam", "-1"], "--stability-lam must be 0 or more"),
        (["--method", "macer", "--macer-after-drop", "--lr-drops"], "waits for the first"),
        (["--split-batches", "--num-samples", "3"], "--split-batches cuts --batch-size 64"),
        (["--accumulate", "65"], "--accumulate must be at most the 64 images"),
        (["--accumulate", "2", "--grad-norm", "batch"], "--grad-norm batch needs the whole batch"),
        (["--save-every", "0"], "--save-every must lie between 1"),
        (["--threads", "0"], "--threads must lie between 1"),
        (["--dry-run", "--data", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["--data-dir", "/nowhere"], "no effect with --data mnist-mini"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_are_one_sentence_and_status_2(tmp_path, capsys, flags, expected):
    words = ["train", "--out", str(tmp_path / "r"), *UNCERTIFIED, *flags]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "r").exists()


def test_a_cuda_device_that_is_not_there_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(tmp_path / "r", "--device", "cuda") == 2
    assert "--device cpu" in capsys.readouterr().err


def test_an_unusable_output_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train(tmp_path / "file") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_divergence_is_a_sentence_and_status_1(tmp_path, capsys):
    assert train(tmp_path / "r", "--lr", "1e12", *UNCERTIFIED) == 1
    assert "training failed at step" in capsys.readouterr().err
