"""``drf-fast certify``: a log that holds, resumes, and refuses what it cannot stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from drf_fast import data
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.certification.log import CertificationLog, read_log
from drf_fast.certification.log.sidecar import read_config
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints import tensorfile
from drf_fast.commands import certify as certify_command
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.functional import certified_radius
from drf_fast.runtime import processes

FLAGS = [
    "--n0", "20", "--n", "200", "--skip", "500", "--batch-size", "64", "--device", "cpu",
    "--memory-format", "contiguous",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certify") / "run"
    words = [
        "train", "--out", str(folder), "--method", "gaussian", "--train-images", "1500",
        "--epochs", "2", "--lr", "0.05", "--certify-images", "0", "--device", "cpu",
        "--memory-format", "contiguous",
    ]  # fmt: skip
    assert main(words) == 0
    return folder


def certify(folder: Path, out: Path, *flags: str) -> int:
    return main(["certify", str(folder), "--out", str(out), *FLAGS, *flags])


def lines_without_time(path: Path) -> list[list[str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[:5] + row[6:] for row in rows]


def test_the_log_holds_what_the_classifier_certifies(trained, tmp_path):
    out = tmp_path / "log.tsv"
    assert certify(trained, out) == 0
    log = read_log(out)
    assert log.idx.tolist() == [0, 500, 1000, 1500]
    saved = checkpoint.load(trained / "checkpoint.pt")
    classifier = SmoothedClassifier(
        checkpoint.build_model(saved, trained / "checkpoint.pt"), 10, 0.5, seed=0
    )
    images = data.load("mnist-mini", "test")
    for row, index in enumerate(log.idx.tolist()):
        label, radius = classifier.certify(
            images.float_images([index])[0], 20, 200, 0.001, 64, image_id=index
        )
        assert log.predict[row] == label
        assert radius - 1e-12 <= log.radius[row] <= radius


def test_a_logged_radius_follows_from_its_count(trained, tmp_path):
    out = tmp_path / "log.tsv"
    certify(trained, out)
    log = read_log(out)
    truth = certified_radius(torch.from_numpy(np.asarray(log.count)), 200, sigma=0.5, alpha=0.001)
    assert np.all(log.radius <= truth.numpy())
    assert np.all(log.radius >= truth.numpy() - 1e-12)


def test_the_sidecar_says_how_the_log_was_made(trained, tmp_path):
    certify(trained, tmp_path / "log.tsv")
    config = json.loads((tmp_path / "log.json").read_text())
    assert config["sigma"] == 0.5 and config["n"] == 200 and config["alpha"] == 0.001
    assert config["method"] == "gaussian" and config["data"] == "mnist-mini"
    assert config["checkpoint_sha256"] == checkpoint.sha256(trained / "checkpoint.pt")


def test_a_resumed_log_is_the_uninterrupted_log(trained, tmp_path, capsys):
    certify(trained, tmp_path / "whole.tsv")
    certify(trained, tmp_path / "parts.tsv")
    content = (tmp_path / "parts.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "parts.tsv").write_text("".join(content[:3]) + content[3][:7])  # a torn line
    total = len(content) - 1
    capsys.readouterr()
    for plan in (["--plan"], []):
        assert certify(trained, tmp_path / "parts.tsv", "--resume", *plan) == 0
        said = capsys.readouterr().err
        assert f"resuming: 2 of {total} images done\ncertifying {total - 2} images of" in said
    for plan in (["--plan"], []):
        assert certify(trained, tmp_path / "parts.tsv", "--resume", *plan) == 0
        said = capsys.readouterr().err
        assert f"resuming: {total} of {total} images done\n" in said
        assert "certifying" not in said and "samples" not in said
    whole = lines_without_time(tmp_path / "whole.tsv")
    assert lines_without_time(tmp_path / "parts.tsv") == whole


def test_resume_refuses_another_seed_and_names_it(trained, tmp_path, capsys):
    certify(trained, tmp_path / "log.tsv")
    before = (tmp_path / "log.tsv").read_bytes()
    assert certify(trained, tmp_path / "log.tsv", "--resume", "--seed", "4") == 2
    assert "seed" in capsys.readouterr().err
    assert (tmp_path / "log.tsv").read_bytes() == before


def test_an_existing_log_needs_force(trained, tmp_path, capsys):
    certify(trained, tmp_path / "log.tsv")
    before = (tmp_path / "log.tsv").read_bytes()
    capsys.readouterr()
    assert certify(trained, tmp_path / "log.tsv") == 2
    said = capsys.readouterr().err
    assert "--force" in said and "certifying" not in said  # before anything is measured
    assert (tmp_path / "log.tsv").read_bytes() == before
    assert certify(trained, tmp_path / "log.tsv", "--force", "--max-images", "1") == 0
    assert len(read_log(tmp_path / "log.tsv")) == 1


@pytest.mark.parametrize(
    "name, reason",
    [("log.json", "call it .tsv"), ("none/log.tsv", "create the folder or choose another one")],
)
@pytest.mark.parametrize("flag", ["--force", "--resume"])
def test_a_place_for_no_log_is_refused_before_anything_is_measured(
    trained, tmp_path, capsys, name, reason, flag
):
    assert certify(trained, tmp_path / name, flag) == 2
    said = capsys.readouterr().err
    assert reason in said and "certifying" not in said and not list(tmp_path.iterdir())


def test_json_on_stdout_is_machine_readable(trained, tmp_path, capsys):
    assert certify(trained, tmp_path / "log.tsv", "--json") == 0
    json.loads(capsys.readouterr().out)


def test_a_hopeless_n_is_announced(trained, tmp_path, capsys):
    assert certify(trained, tmp_path / "log.tsv", "--n", "5", "--max-images", "1") == 0
    assert "every image must abstain" in capsys.readouterr().err
    assert read_log(tmp_path / "log.tsv").predict.tolist() == [-1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--n", "0"], "--n must lie between 1 and 2^32 - 1, got 0"),
        (["--alpha", "1"], "--alpha must be a probability between 0 and 1, got 1"),
        (["--sigma", "-1"], "--sigma must be a finite number above 0"),
        (["--skip", "0"], "--skip must lie between 1"),
        (["--resume", "--force"], "--resume continues a log and --force replaces it: pass one of"),
        (["--n", "5000000000"], "--n must lie between 1 and 2^32 - 1, got 5000000000"),
        (["--sigma", "1e300"], "expected at most 4, got 1e+300"),
        (["--sigma", "128"], "0..255 is divided by 255: --sigma 0.502"),
        (["--sigma", "nan"], "from 1e-6 to 4"),
        (["--seed", "18446744073709551616"], "--seed must lie between -2^63 and"),
        (["--data", "nothing"], "mnist-mini"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_are_one_sentence_and_leave_no_file(
    trained, tmp_path, capsys, flags, expected
):
    assert certify(trained, tmp_path / "log.tsv", *flags) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_another_noise_level_than_that_of_training_is_said(trained, tmp_path, capsys):
    assert certify(trained, tmp_path / "a.tsv", "--sigma", "0.25", "--max-images", "1") == 0
    assert "trained at sigma 0.5, not 0.25" in capsys.readouterr().err
    assert certify(trained, tmp_path / "b.tsv", "--max-images", "1") == 0
    assert "trained at sigma" not in capsys.readouterr().err


def test_a_missing_checkpoint_is_refused(tmp_path, capsys):
    assert certify(tmp_path / "none.pt", tmp_path / "log.tsv") == 2
    assert "no such file" in capsys.readouterr().err


def test_a_truncated_checkpoint_is_refused(trained, tmp_path, capsys):
    broken = tmp_path / "broken.pt"
    broken.write_bytes((trained / "checkpoint.pt").read_bytes()[:5000])
    assert certify(broken, tmp_path / "log.tsv") == 2
    assert "truncated" in capsys.readouterr().err


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"arch": "resnet", "state_dict": {}}, tmp_path / "foreign.pt")
    assert certify(tmp_path / "foreign.pt", tmp_path / "log.tsv") == 2
    assert "no drf_fast checkpoint" in capsys.readouterr().err


class Exploit:
    def __reduce__(self):
        return (open, ("exploited", "w"))


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Exploit()}, tmp_path / "bad.pt")
    assert certify(tmp_path / "bad.pt", tmp_path / "log.tsv") == 2
    assert "holds code" in capsys.readouterr().err
    assert not (tmp_path / "exploited").exists()


def test_weights_that_do_not_fit_are_refused(trained, tmp_path, capsys):
    saved = checkpoint.load(trained / "checkpoint.pt")
    del saved["model"]["fc2.bias"]
    checkpoint.save(tmp_path / "odd.pt", saved)
    assert certify(tmp_path / "odd.pt", tmp_path / "log.tsv") == 2
    assert "fc2.bias" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"config": None}, {"image_shape": 28}, {"model": 3}])
def test_a_damaged_checkpoint_is_refused(trained, tmp_path, capsys, change):
    saved = checkpoint.load(trained / "checkpoint.pt")
    checkpoint.save(tmp_path / "odd.pt", {**saved, **change})
    assert certify(tmp_path / "odd.pt", tmp_path / "log.tsv") == 2
    assert f"is damaged: expected a drf_fast checkpoint, got one whose {next(iter(change))}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl", "config.tsv"])
def test_force_replaces_logs_only(trained, tmp_path, capsys, name):
    shutil.copytree(trained, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert certify(tmp_path / "run", tmp_path / "run" / name, "--force") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_one_process_at_a_time_writes_a_log(trained, tmp_path, capsys):
    certify(trained, tmp_path / "log.tsv")
    config = json.loads((tmp_path / "log.json").read_text())
    with CertificationLog.resume(tmp_path / "log.tsv", config):
        assert certify(trained, tmp_path / "log.tsv", "--resume") == 2
    assert "is being written by another process" in capsys.readouterr().err


def test_the_log_is_merged_before_another_process_may_write_it(trained, tmp_path, monkeypatch):
    seen = []

    def merged(out: Path) -> None:
        with pytest.raises(InputError, match="is being written by another"):
            CertificationLog.resume(out, read_config(out))
        seen.append(out)

    monkeypatch.setattr(certify_command, "collect", merged)
    assert certify(trained, tmp_path / "a.tsv") == 0 and seen == [tmp_path / "a.tsv"]


def test_process_0_is_waited_for_while_it_measures(trained, tmp_path, monkeypatch):
    """Before the log is opened, and with a sign of life in every measured pass."""
    events = []
    monkeypatch.setattr(
        processes, "wait_for_all", lambda: events.append((tmp_path / "a.tsv").exists())
    )
    monkeypatch.setattr(processes, "finish", lambda: events.append("finished"))
    monkeypatch.setattr(processes, "heartbeat", lambda: events.append("heartbeat"))
    assert certify(trained, tmp_path / "a.tsv", "--plan") == 0
    assert events == ["heartbeat"] * (len(events) - 2) + [False, "finished"] and len(events) > 5
    events.clear()
    assert certify(trained, tmp_path / "a.tsv") == 0
    assert [event for event in events if event != "heartbeat"] == [False, True, "finished"]


def test_a_process_that_cannot_run_the_network_as_process_0_does_says_so(
    trained, tmp_path, capsys, monkeypatch
):
    def of_process_0(value):  # on a GPU
        return {**value, "precision": "tf32"} if isinstance(value, dict) else value

    monkeypatch.setattr(processes, "broadcast", of_process_0)
    assert certify(trained, tmp_path / "log.tsv") == 1
    said = capsys.readouterr().err
    assert "as process 0 does" in said and "without contiguous tf32; pass --precision fp32" in said
    assert not (tmp_path / "log.tsv").exists()


def test_a_resumed_log_keeps_the_measured_choices(trained, tmp_path, capsys):
    certify(trained, tmp_path / "log.tsv")
    flags = ["--resume", "--memory-format", "channels_last"]
    assert certify(trained, tmp_path / "log.tsv", *flags) == 2
    assert "memory_format" in capsys.readouterr().err
    flags = ["--resume", "--memory-format", "auto", "--batch-size", "auto"]
    assert certify(trained, tmp_path / "log.tsv", *flags) == 0


def test_a_checkpoint_may_be_named_by_its_run_folder_or_its_file(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    assert certify(tmp_path / "run", tmp_path / "a.tsv", "--max-images", "1") == 0
    file = tmp_path / "run" / "checkpoint.pt"
    assert certify(file, tmp_path / "b.tsv", "--max-images", "1") == 0
    assert lines_without_time(tmp_path / "a.tsv") == lines_without_time(tmp_path / "b.tsv")


@pytest.mark.parametrize("named", [False, True], ids=["default out", "out"])
def test_the_checkpoint_is_read_and_hashed_once(named, trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    reads: list[Path] = []
    read = tensorfile.read_bytes
    monkeypatch.setattr(tensorfile, "read_bytes", lambda path: (reads.append(path), read(path))[1])
    out = ["--out", str(tmp_path / "log.tsv")] if named else []
    assert main(["certify", str(folder), *FLAGS, *out]) == 0
    assert reads == [folder / "checkpoint.pt"]


def test_a_resumed_log_keeps_its_number_of_threads(trained, tmp_path, capsys):
    out, before = tmp_path / "log.tsv", torch.get_num_threads()
    recorded = 2 if before == 1 else 1
    assert certify(trained, out, "--threads", str(recorded)) == 0
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:3]))
    assert certify(trained, out, "--resume") == 0
    assert f"threads: {recorded}, as recorded in" in capsys.readouterr().err
    settings = json.loads((tmp_path / "log.json").read_text())
    assert settings["environment"]["threads"] == recorded
    assert "environments_resumed" not in settings  # nothing has changed
    assert torch.get_num_threads() == before
    for odd in (0, -1, "two", True, 10**9):  # a damaged log
        settings["environment"]["threads"] = odd
        (tmp_path / "log.json").write_text(json.dumps(settings))
        assert certify(trained, out, "--resume") == 0


def test_a_log_made_for_a_radius_goes_on_for_that_radius_only(trained, tmp_path, capsys):
    flags = ["--budget", "anytime", "--radius", "0.05"]
    assert certify(trained, tmp_path / "log.tsv", *flags) == 0
    assert json.loads((tmp_path / "log.json").read_text())["radius"] == 0.05
    assert certify(trained, tmp_path / "log.tsv", *flags[:-1], "0.06", "--resume") == 2
    assert "radius (0.05 there, 0.06 now)" in capsys.readouterr().err
