"""A checkpoint whose bits have changed, or whose training state cannot be, is refused."""

from __future__ import annotations

import math
import random

import pytest
import torch

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints.checksum import content_sha256
from drf_fast.commands.cli import main
from drf_fast.errors import InputError

SMALL = ["--train-images", "128", "--epochs", "2", "--certify-images", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with one finished epoch of two."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    assert main(["train", *SMALL, "--max-steps", "3", "--out", str(folder)]) == 0
    return folder


def rewritten(trained, folder, change):
    """A copy of the run whose checkpoint says something else, with a checksum that fits."""
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).write_bytes((trained / name).read_bytes())
    saved = checkpoint.load(trained / "checkpoint.pt")
    saved = {key: value for key, value in saved.items() if key not in ("sha256", "format")}
    change(saved)
    checkpoint.save(folder / "checkpoint.pt", saved)
    return folder


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_the_tensors_is_seen(trained, tmp_path):
    data = (trained / "checkpoint.pt").read_bytes()
    weights = checkpoint.load(trained / "checkpoint.pt")["model"]
    path = tmp_path / "flipped.pt"
    chosen = random.Random(0)
    for tensor in weights.values():
        raw = bytes(tensor.untyped_storage())  # in the order of its memory format
        at = data.index(raw) + chosen.randrange(len(raw))
        flipped = bytearray(data)
        flipped[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"is damaged: expected the content that its checksum"):
            checkpoint.load(path)


def test_a_checkpoint_of_the_first_version_has_no_checksum_and_loads(trained, tmp_path):
    saved = checkpoint.load(trained / "checkpoint.pt")
    del saved["sha256"]
    torch.save({**saved, "format": "drf_fast checkpoint 1"}, tmp_path / "old.pt")
    loaded = checkpoint.load(tmp_path / "old.pt")
    assert content_sha256(loaded["model"]) == content_sha256(saved["model"])
    torch.save({**saved, "format": "drf_fast checkpoint 2"}, tmp_path / "stripped.pt")
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(tmp_path / "stripped.pt")


def test_the_checksum_tells_values_types_and_shapes_apart():
    same = {"a": torch.zeros(2), "b": [1, "x"], "c": None}
    assert content_sha256(same) == content_sha256({**same, "a": torch.zeros(2).clone()})
    others = [
        {**same, "a": torch.zeros(2, 1)},
        {**same, "a": torch.zeros(2, dtype=torch.float64)},
        {**same, "a": torch.tensor([0.0, -0.0])},
        {**same, "b": (1, "x")},
        {**same, "b": [1.0, "x"]},
        {**same, "b": [True, "x"]},
        {**same, "c": 0},
        {"a": same["a"], "b": same["b"]},
    ]
    assert len({content_sha256(value) for value in [same, *others]}) == len(others) + 1


@pytest.mark.parametrize("value", [None, -1, 2**70, 1.5, "x", True, [3]])
@pytest.mark.parametrize("name", ["epoch", "batch", "step"])
def test_a_count_that_cannot_be_ends_in_a_sentence(trained, tmp_path, capsys, name, value):
    folder = rewritten(trained, tmp_path / "r", lambda saved: saved.update({name: value}))
    assert main(["train", *SMALL, "--resume", "--out", str(folder)]) == 2
    assert f"got one whose {name} cannot be" in capsys.readouterr().err


OPTIMIZERS = {
    "none": lambda o: None,
    "a number": lambda o: 3,
    "no groups": lambda o: {**o, "param_groups": []},
    "a group": lambda o: {**o, "param_groups": [3]},
    "buffer of another shape": lambda o: {
        **o,
        "state": {**o["state"], 0: {"momentum_buffer": torch.tensor(1.0)}},
    },
    "buffer of bytes": lambda o: {
        **o,
        "state": {
            key: {"momentum_buffer": entry["momentum_buffer"].byte()}
            for key, entry in o["state"].items()
        },
    },
    "one parameter more": lambda o: {**o, "state": {**o["state"], 99: {}}},
    "nan buffer": lambda o: {
        **o,
        "state": {
            key: {"momentum_buffer": entry["momentum_buffer"] * math.nan}
            for key, entry in o["state"].items()
        },
    },
    "entry none": lambda o: {**o, "state": dict.fromkeys(o["state"])},
    "fewer parameters": lambda o: {
        **o,
        "param_groups": [{**o["param_groups"][0], "params": o["param_groups"][0]["params"][:-1]}],
    },
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_that_cannot_be_ends_in_a_sentence(trained, tmp_path, capsys, kind):
    change = OPTIMIZERS[kind]
    folder = rewritten(
        trained, tmp_path / "r", lambda saved: saved.update(optimizer=change(saved["optimizer"]))
    )
    assert main(["train", *SMALL, "--resume", "--out", str(folder)]) == 2
    assert "expected a checkpoint with the state of a training run" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"momentum": 1e308}, {"lr": math.nan}, {"nesterov": "x"}])
def test_hyperparameters_are_those_of_the_settings_and_not_of_the_file(trained, tmp_path, change):
    def edit(saved):
        saved["optimizer"]["param_groups"][0].update(change)

    folder = rewritten(trained, tmp_path / "r", edit)
    plain = rewritten(trained, tmp_path / "s", lambda saved: None)
    for path in (folder, plain):
        assert main(["train", *SMALL, "--resume", "--out", str(path)]) == 0
    assert content_sha256(checkpoint.load(folder / "checkpoint.pt")["model"]) == content_sha256(
        checkpoint.load(plain / "checkpoint.pt")["model"]
    )


@pytest.mark.parametrize("ball", [5, None, {}, torch.ones(3)])
def test_a_ball_that_cannot_be_ends_in_a_sentence(trained, tmp_path, capsys, ball):
    folder = rewritten(trained, tmp_path / "r", lambda saved: saved.update(ball=ball))
    assert main(["train", *SMALL, "--resume", "--out", str(folder)]) == 2
    assert "expected the state of a SoftBall" in capsys.readouterr().err


def test_settings_that_are_no_plain_values_end_in_a_sentence(trained, tmp_path, capsys):
    def edit(saved):
        saved["config"]["batch_size"] = torch.tensor(8)

    folder = rewritten(trained, tmp_path / "r", edit)
    assert main(["train", *SMALL, "--resume", "--out", str(folder)]) == 2
    assert "got one whose config cannot be used" in capsys.readouterr().err


def test_a_checkpoint_that_lost_its_mark_is_not_taken_for_another_programs(trained, tmp_path):
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)
    saved["gormat"] = saved.pop("format")
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(InputError, match="expected the format"):
        checkpoint.load_any(tmp_path / "a.pt", "lenet")


@pytest.mark.parametrize(
    "totals", [None, {}, {"sums": torch.zeros(3), "images": 1, "seconds": 1.0}, {"images": -1}]
)
def test_totals_that_cannot_be_end_in_a_sentence(trained, tmp_path, capsys, totals):
    folder = rewritten(trained, tmp_path / "r", lambda saved: saved.update(totals=totals))
    assert main(["train", *SMALL, "--resume", "--out", str(folder)]) == 2
    assert "got one whose totals cannot be" in capsys.readouterr().err
