"""``drf_fast.load_run``: from a run folder to a network in Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast import data
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.models import Normalize

SMALL = ["--train-images", "128", "--epochs", "2", "--certify-images", "2", "--certify-n", "200"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load_run") / "run"
    words = ["train", *SMALL, "--max-steps", "3", "--sigma", "0.25", "--device", "cpu"]
    assert main([*words, "--memory-format", "contiguous", "--out", str(folder)]) == 0
    return folder


def own_run(path, normalize="none"):
    """A run of a network of the user's own, of which the file holds the weights alone."""
    layers = [nn.Flatten(), nn.Linear(3 * 4 * 4, 5)]
    network = nn.Sequential(*layers)
    whole = (
        network if normalize == "none" else nn.Sequential(Normalize([0.5] * 3, [2.0] * 3), network)
    )
    content = {
        "model": whole.state_dict(),
        "arch": "a_module_that_is_not_there:make",
        "num_classes": 5,
        "image_shape": [3, 4, 4],
        "config": {"sigma": 0.5, "data": "x", "method_label": "gaussian", "normalize": normalize},
    }
    checkpoint.save(path, content)
    return whole


class Scaled(nn.Sequential):
    """A network with state that is no tensor."""

    scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_state_that_is_no_tensor_comes_back(tmp_path):
    network = Scaled(nn.Flatten(), nn.Linear(48, 5))
    network.scale = 3.0
    content = {
        "model": network.state_dict(),
        "arch": "a_module_that_is_not_there:make",
        "num_classes": 5,
        "image_shape": [3, 4, 4],
        "config": {"sigma": 0.5, "data": "x", "method_label": "gaussian", "normalize": "none"},
    }
    checkpoint.save(tmp_path / "a.pt", content)
    found = Scaled(nn.Flatten(), nn.Linear(48, 5))
    assert drf_fast.load_run(tmp_path / "a.pt", found).network is found and found.scale == 3.0
    with pytest.raises(InputError, match="expected an nn.Module as network=, got a function"):
        drf_fast.load_run(tmp_path / "a.pt", lambda: found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "checkpoint.pt"])
def test_a_run_comes_back_with_its_weights_and_settings(folder, name):
    run = drf_fast.load_run(str(folder / name))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    weights = run.network.state_dict()
    assert list(weights) == list(saved["model"])
    assert all(torch.equal(weights[key], saved["model"][key]) for key in weights)
    assert not any(module.training for module in run.network.modules())
    assert (run.sigma, run.num_classes, run.image_shape) == (0.25, 10, (1, 28, 28))
    assert run.settings["lr"] == 0.05 and run.settings["epochs"] == 2
    assert run.path == folder / "checkpoint.pt" and run.sha256 == checkpoint.sha256(run.path)


def test_what_it_certifies_is_what_the_command_certified(folder):
    run = drf_fast.load_run(folder)
    smoothed = drf_fast.SmoothedClassifier(
        run.network, run.num_classes, run.sigma, memory_format="contiguous"
    )
    images = data.load("mnist-mini", "test")
    lines = (folder / "certificates.tsv").read_text().splitlines()[1:]
    assert len(lines) == 2
    for line in lines:
        index, _, label, radius = line.split("\t")[:4]
        x = images.float_images([int(index)])[0]
        found = smoothed.certify(x, 100, 200, 0.001, 200, image_id=int(index))
        assert found[0] == int(label) and abs(found[1] - float(radius)) < 1e-9


@pytest.mark.parametrize("normalize", ["none", "cifar10"])
def test_the_code_of_a_network_of_ones_own_comes_from_the_caller(tmp_path, normalize):
    whole = own_run(tmp_path / "own.pt", normalize)
    with pytest.raises(InputError, match="expected it as network=, got none; pass what a_module"):
        drf_fast.load_run(tmp_path / "own.pt")
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    run = drf_fast.load_run(tmp_path / "own.pt", network)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(run.network(x), whole(x))
    with pytest.raises(InputError, match=r"own\.pt do not fit .*size mismatch"):
        drf_fast.load_run(tmp_path / "own.pt", nn.Sequential(nn.Flatten(), nn.Linear(48, 6)))


def test_what_is_no_whole_run_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="lenet, which drf_fast builds itself: .*leave network="):
        drf_fast.load_run(folder, nn.Linear(2, 2))
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        drf_fast.load_run(tmp_path / "absent")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="no drf_fast checkpoint"):
        drf_fast.load_run(tmp_path / "foreign.pt")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    next(iter(saved["model"].values())).view(-1)[0] += 1
    torch.save(saved, tmp_path / "changed.pt")
    with pytest.raises(InputError, match="is damaged: expected the content that its checksum"):
        drf_fast.load_run(tmp_path / "changed.pt")
