"""``train --init``: from the weights of a checkpoint, ours or another program's; ``--threads``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from drf_fast import models
from drf_fast.checkpoints import first_layer
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config.options import TrainConfig
from drf_fast.errors import InputError
from drf_fast.models import Normalize
from drf_fast.training import initial

SHAPE = (1, 28, 28)
SMALL = ["--method", "gaussian", "--num-samples", "1", "--train-images", "128", "--epochs", "1"]
SMALL += ["--memory-format", "contiguous", "--certify-images", "0", "--device", "cpu"]


def lenet(seed: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return models.build("lenet", 10, SHAPE).state_dict()


def ours(path: Path, arch: str, weights: dict[str, torch.Tensor], shape=SHAPE) -> None:
    content = {
        "model": weights,
        "arch": arch,
        "num_classes": 10,
        "image_shape": list(shape),
        "config": {"sigma": 0.5, "data": "mnist-mini", "method_label": "gaussian"},
    }
    checkpoint.save(path, content)


def equal(one, other) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", ["ours", "plain", "module.", "lightning"])
def test_the_network_starts_from_the_file(tmp_path, kind):
    weights, path = lenet(), tmp_path / "a.pt"
    if kind == "ours":
        ours(path, "lenet", weights)
    else:
        prefix = {"plain": "", "module.": "module.", "lightning": "model."}[kind]
        state = {prefix + key: value for key, value in weights.items()}
        torch.save(state if kind == "plain" else {"state_dict": state, "epoch": 3}, path)
    config = TrainConfig(arch="lenet", normalize="none", init=path)
    network, digest = initial.network(config, 10, SHAPE)
    assert equal(network.state_dict(), weights) and digest == checkpoint.sha256(path)


def test_a_checkpoint_of_ours_without_its_mark_is_damaged_and_not_foreign(tmp_path):
    path = tmp_path / "a.pt"
    ours(path, "lenet", lenet())
    content = torch.load(path, weights_only=True)
    content["fOrmat"] = content.pop("format")
    torch.save(content, path)
    with pytest.raises(InputError, match="expected the format"):
        initial.network(TrainConfig(arch="lenet", normalize="none", init=path), 10, SHAPE)


def train(*words: str) -> int:
    return main(["train", *SMALL, *words])


def test_a_run_goes_on_from_it_and_resumes_without_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(lenet(), "a.pt")
    words = ["--init", "a.pt", "--lr", "1e-12", "--weight-decay", "0", "--momentum", "0"]
    words += ["--no-nesterov"]
    assert train(*words, "--out", "run", "--max-steps", "1") == 0
    assert "starting from the weights in a.pt" in capsys.readouterr().err
    saved = checkpoint.load(Path("run/checkpoint.pt"))
    for key, value in lenet().items():  # one step of size 1e-12 later
        torch.testing.assert_close(saved["model"][key], value, rtol=0, atol=1e-9)
    assert saved["config"]["init_sha256"] == checkpoint.sha256(Path("a.pt"))
    assert json.loads(Path("run/config.json").read_text())["init_sha256"]
    Path("a.pt").unlink()
    assert train("--out", "run", "--resume") == 0
    again = checkpoint.load(Path("run/checkpoint.pt"))
    assert again["step"] == 2
    assert again["config"]["init_sha256"] == saved["config"]["init_sha256"]
    assert train("--out", "run", "--resume", "--init", "b.pt") == 2
    assert "init (then 'a.pt', now 'b.pt')" in capsys.readouterr().err


def test_what_the_refusal_suggests_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ours(Path("a.pt"), "resnet20", models.build("resnet20", 10, SHAPE).state_dict())
    words = ["--init", "a.pt", "--max-steps", "1", "--batch-size", "4", "--out", "run"]
    assert train(*words) == 2
    said = capsys.readouterr().err
    assert "holds the weights of resnet20" in said and "pass --arch resnet20" in said
    assert train(*words, "--arch", "resnet20") == 0


def test_weights_of_another_network_name_their_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = lenet()
    weights.pop(next(iter(weights)))
    torch.save(weights, "a.pt")
    assert train("--init", "a.pt") == 2
    assert "do not fit --arch lenet: missing conv" in capsys.readouterr().err
    assert train("--init", "absent.pt") == 2
    assert "cannot read the checkpoint absent.pt" in capsys.readouterr().err
    assert not Path("runs").exists()


def of_classes(count: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return models.build("lenet", count, SHAPE).state_dict()


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_a_last_layer_of_other_classes_starts_at_random(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    weights = of_classes(1000)
    if kind == "ours":
        ours(Path("a.pt"), "lenet", weights)
    else:
        torch.save({f"module.{key}": value for key, value in weights.items()}, "a.pt")
    config = TrainConfig(arch="lenet", normalize="none", init=Path("a.pt"))
    torch.manual_seed(5)
    fresh = models.build("lenet", 10, SHAPE).state_dict()
    torch.manual_seed(5)
    found = initial.network(config, 10, SHAPE)[0].state_dict()
    head = ["fc2.weight", "fc2.bias"]
    assert all(torch.equal(found[key], fresh[key]) for key in head)
    assert all(torch.equal(found[key], weights[key]) for key in weights if key not in head)
    said = capsys.readouterr().err
    assert "a.pt is of 1000 classes: fc2.weight, fc2.bias are left out, and those of 10" in said


@pytest.mark.parametrize(
    "changed",
    [
        {"fc2.bias": torch.zeros(1000)},  # not of one number of classes
        {"fc1.bias": torch.zeros(400)},
        {"fc2.weight": torch.zeros(1000, 400), "fc2.bias": torch.zeros(1000)},
        {"fc1.weight": torch.zeros(400, 800), "fc1.bias": torch.zeros(400)},  # not the last layer
        {"fc2.weight": torch.zeros(1000, 500), "fc2.bias": torch.zeros(1000), "conv1.bias": None},
    ],
)
def test_a_layer_that_differs_otherwise_is_refused(tmp_path, changed):
    weights = {k: v for k, v in {**of_classes(10), **changed}.items() if v is not None}
    torch.save(weights, tmp_path / "a.pt")
    config = TrainConfig(arch="lenet", normalize="none", init=tmp_path / "a.pt")
    with pytest.raises(InputError, match="wrong shape fc.*or load them in the factory"):
        initial.network(config, 10, SHAPE)


@pytest.mark.parametrize("there", ["none", "cifar10", "cifar10-center", "odd"])
@pytest.mark.parametrize("asked", ["none", "cifar10", "cifar10-center"])
def test_weights_behind_another_first_layer_are_refused(tmp_path, there, asked):
    shape, path = (3, 32, 32), tmp_path / "a.pt"
    torch.manual_seed(0)
    inner = models.build("resnet20", 10, shape)
    known = "none" if there == "odd" else there
    network = models.build("resnet20", 10, shape, known)
    if there == "odd":
        network = torch.nn.Sequential(Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]), inner)
    ours(path, "resnet20", network.state_dict(), shape)
    config = TrainConfig(arch="resnet20", normalize=asked, init=path)
    if asked == there:
        found, _ = initial.network(config, 10, shape)
        assert equal(found.state_dict(), network.state_dict())
        return
    value = "0.1,0.2,0.3/1,2,3" if there == "odd" else there
    expected = f"expected that of --normalize {asked}, got {value}; pass --normalize {value}$"
    with pytest.raises(ValueError, match=expected):
        initial.network(config, 10, shape)
    found, _ = initial.network(dataclasses.replace(config, normalize=value), 10, shape)
    assert equal(found.state_dict(), network.state_dict())


def own_network(folder, monkeypatch, returned: str) -> str:
    """The --arch of a module in ``folder``, the working folder, whose factory returns that."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = f"init_{folder.name}".replace("-", "_")
    Path(f"{name}.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"
        f"    return {returned}\n"
    )
    return f"{name}:make"


def test_a_network_of_ones_own_starts_from_any_file(tmp_path, monkeypatch):
    arch = own_network(tmp_path, monkeypatch, "net")
    torch.save({"net": {"module.1.weight": torch.zeros(10, 784), "module.1.bias": torch.ones(10)}},
               "a.pt")  # fmt: skip
    network, _ = initial.network(
        TrainConfig(arch=arch, normalize="none", init=Path("a.pt")), 10, SHAPE
    )
    assert torch.equal(network(torch.rand(2, *SHAPE)), torch.ones(2, 10))


def test_a_network_may_have_a_part_called_module(tmp_path, monkeypatch):
    arch = own_network(tmp_path, monkeypatch, "nn.DataParallel(net)")
    weights = {"module.1.weight": torch.zeros(10, 784), "module.1.bias": torch.ones(10)}
    torch.save(weights, "a.pt")
    network, _ = initial.network(
        TrainConfig(arch=arch, normalize="none", init=Path("a.pt")), 10, SHAPE
    )
    assert equal(network.state_dict(), weights)


def test_a_first_layer_that_is_only_assumed_is_said(tmp_path, capsys):
    torch.manual_seed(0)
    inner = models.build("resnet20", 10, (3, 32, 32)).state_dict()
    torch.save({f"1.{key}": value for key, value in inner.items()}, tmp_path / "a.pt")
    config = TrainConfig(arch="resnet20", normalize="cifar10", init=tmp_path / "a.pt")
    initial.network(config, 10, (3, 32, 32))
    said = capsys.readouterr().err
    assert "first layer without its constants: assumed --normalize cifar10" in said


def test_a_first_layer_that_the_file_has_not_is_said(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(models.build("resnet20", 10, (3, 32, 32)).state_dict(), tmp_path / "a.pt")
    config = TrainConfig(arch="resnet20", normalize="cifar10", init=tmp_path / "a.pt")
    initial.network(config, 10, (3, 32, 32))
    assert "has no first layer: --normalize cifar10 is put before it" in capsys.readouterr().err
    initial.network(dataclasses.replace(config, normalize="none"), 10, (3, 32, 32))
    assert "first layer" not in capsys.readouterr().err


@pytest.mark.parametrize("size, expected", [(32, "cifar10"), (64, "imagenet"), (224, "imagenet")])
def test_the_assumed_constants_are_those_of_the_images(size, expected):
    assert first_layer.usual_for((3, size, size)) == expected


@pytest.mark.parametrize("command", ["certify", "predict", "gap"])
def test_threads_are_set_for_the_command_and_left_as_they_were(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    ours(Path("a.pt"), "lenet", lenet())
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: seen[-1] if seen else 1)
    words = [command, "a.pt", "--max-images", "1", "--device", "cpu", "--threads", "3"]
    if command != "gap":
        words += ["--n", "20", "--batch-size", "64", "--out", "log.tsv"]
    assert main(words) in (0, 1)  # untrained: gap may find nothing right
    assert seen == [3, 1]
    if command != "gap":
        assert json.loads(Path("log.json").read_text())["environment"]["threads"] == 3
    assert main([*words[:-1], "0"] if command == "gap" else [*words, "--threads", "0"]) == 2
    assert "--threads must lie between 1 and" in capsys.readouterr().err
