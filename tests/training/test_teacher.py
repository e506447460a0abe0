"""CAT-RS's targets: the votes of a trained network, counted once and kept in the run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drf_fast
from drf_fast import data
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config import run_files
from drf_fast.config.options import TrainConfig
from drf_fast.config.training import trained
from drf_fast.errors import InputError
from drf_fast.runtime.randomness import TEACHER
from drf_fast.training.teacher import load

pytestmark = pytest.mark.slow
IMAGES, VOTES, SEED = 70, 20, 3  # more than one batch of images, more than one pass of copies
SMALL = [
    "--train-images", str(IMAGES), "--batch-size", "35", "--epochs", "2", "--device", "cpu",
    "--memory-format", "contiguous", "--certify-images", "0", "--seed", str(SEED),
]  # fmt: skip
CATRS = ["--method", "catrs", "--steps", "2", "--num-samples", "3", "--catrs-n", str(VOTES)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "gaussian"
    words = ["train", *SMALL, "--method", "gaussian", "--sigma", "0.3", "--out", str(folder)]
    assert main([*words, "--lr", "0.2"]) == 0
    return folder


def train(folder: Path, teacher: Path, *flags: str) -> int:
    words = ["train", *SMALL, *CATRS, "--out", str(folder), "--catrs-teacher", str(teacher)]
    return main([*words, *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, teacher) == 0
    return folder


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / run_files.CHECKPOINT)


def test_the_votes_are_those_of_the_network_at_its_own_noise_level(whole, teacher):
    path = teacher / run_files.CHECKPOINT
    network = checkpoint.build_model(checkpoint.load(path), path).eval()
    images = data.load("mnist-mini", "train", limit=IMAGES)
    key = drf_fast.noise_key(SEED, TEACHER)
    expected = np.zeros((IMAGES, 10), dtype=np.float32)
    for image in range(IMAGES):
        copies = drf_fast.noisy_repeat(
            images.float_images([image]), 0.3, VOTES, seed=key,
            image_ids=torch.tensor([image]), stream="prediction",
        )  # fmt: skip
        with torch.no_grad():
            for label in network(copies).argmax(1).tolist():
                expected[image, label] += np.float32(1)
    expected /= np.float32(VOTES)
    found = np.load(whole / "smoothed.npy", allow_pickle=False)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    assert len(np.unique(expected)) > 3  # neither sure of everything nor of nothing


def test_a_resumed_run_is_the_whole_run_and_needs_no_teacher(whole, teacher, tmp_path):
    there, folder = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, there)
    assert train(folder, there, "--max-steps", "3") == 0
    shutil.rmtree(there)
    assert main(["train", "--out", str(folder), "--resume", "--certify-images", "0"]) == 0
    got, expected = state(folder), state(whole)
    assert got["step"] == expected["step"] == 4
    assert all(torch.equal(got["model"][key], value) for key, value in expected["model"].items())
    assert torch.equal(got["ball"]["lam"], expected["ball"]["lam"])
    assert float(expected["ball"]["lam"]) != 1.0
    digest = checkpoint.sha256(teacher / run_files.CHECKPOINT)
    assert got["config"]["teacher_sha256"] == expected["config"]["teacher_sha256"] == digest
    assert "catrs_teacher" not in trained(got["config"])  # where it lay did not shape the network


def test_a_step_in_parts_is_the_whole_step(whole, teacher, tmp_path):
    assert train(tmp_path / "run", teacher, "--accumulate", "4") == 0
    got, expected = state(tmp_path / "run")["model"], state(whole)["model"]
    assert all(torch.allclose(got[key], expected[key], atol=1e-5) for key in expected)


def test_the_target_matters(whole, teacher, tmp_path):
    assert train(tmp_path / "run", teacher, "--catrs-n", "1") == 0
    got, expected = state(tmp_path / "run")["model"], state(whole)["model"]
    assert not all(torch.allclose(got[key], expected[key], atol=1e-5) for key in expected)


def test_a_dry_run_says_what_counting_takes_and_writes_nothing(teacher, tmp_path, capsys):
    seconds = []
    for votes in ("20", "2000000"):
        assert train(tmp_path / "run", teacher, "--dry-run", "--json", "--catrs-n", votes) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["settings"]["catrs_n"] == int(votes)
        seconds.append(shown["predicted"]["seconds"])
    assert seconds[1] > 100 * seconds[0]
    assert train(tmp_path / "run", teacher, "--dry-run") == 0
    assert " of smoothed predictions, " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_code_of_a_teacher_is_not_that_of_the_trained_network(teacher, tmp_path):
    """A teacher of the user's own is not built as the network to be trained."""
    content = {**state(teacher), "arch": "nets:make"}
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    for arch in ("lenet", "other:make"):
        config = TrainConfig(method="catrs", catrs_teacher=tmp_path, arch=arch)
        with pytest.raises(
            InputError, match=f"expected a teacher of --arch {arch} .* got one of nets:make"
        ):
            load(config, 10, (1, 28, 28), torch.device("cpu"))


def test_a_damaged_file_is_named(whole, teacher, tmp_path, capsys):
    for content, expected in ((b"\x93NUMPY", "--resume counts them again"), (None, "(3, 10)")):
        folder = tmp_path / str(content)
        shutil.copytree(whole, folder)
        if content is None:
            np.save(folder / "smoothed.npy", np.zeros((3, 10), dtype=np.float32))
        else:
            (folder / "smoothed.npy").write_bytes(content)
        assert train(folder, teacher, "--resume") == 2
        error = capsys.readouterr().err
        assert expected in error and "smoothed.npy" in error
        (folder / "smoothed.npy").unlink()
        assert train(folder, teacher, "--resume") == 0
        kept = (folder / "smoothed.npy").read_bytes()
        assert kept == (whole / "smoothed.npy").read_bytes()


def test_another_teacher_does_not_count_for_a_resumed_run(whole, teacher, tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(whole, folder)
    (folder / "smoothed.npy").unlink()
    saved = checkpoint.load(folder / run_files.CHECKPOINT)
    other.mkdir()
    checkpoint.save(other / run_files.CHECKPOINT, {**state(teacher), "epoch": 7})
    config = {**saved["config"], "catrs_teacher": str(other)}
    checkpoint.save(folder / run_files.CHECKPOINT, {**saved, "config": config})
    assert train(folder, other, "--resume") == 2
    assert "is another network than the run was started with" in capsys.readouterr().err


def test_a_run_without_a_fitting_teacher_is_refused(teacher, tmp_path, capsys):
    assert main(["train", *SMALL, *CATRS, "--out", str(tmp_path / "a")]) == 2
    assert "--method catrs needs --catrs-teacher" in capsys.readouterr().err
    other = state(teacher)
    shape = {"num_classes": 3, "image_shape": [1, 28, 28]}
    checkpoint.save(tmp_path / "other.pt", {**other, **shape})
    assert train(tmp_path / "b", tmp_path / "other.pt") == 2
    error = capsys.readouterr().err
    assert "(1, 28, 28) into 10 classes" in error and "got (1, 28, 28) and 3" in error
    assert train(tmp_path / "c", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in "abc")
