"""Checkpoints as people have them: each loads to the same network."""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from drf_fast import models
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints import plain_values, tensorfile
from drf_fast.checkpoints.ours import load_any as load
from drf_fast.errors import InputError


def network() -> nn.Module:
    torch.manual_seed(0)
    return models.build("resnet20", 10, (3, 32, 32)).eval()


NETWORK = network()
WEIGHTS = NETWORK.state_dict()
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in WEIGHTS.items()}


def zeros() -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in WEIGHTS.items()}


def assert_same_network(path: Path, images: torch.Tensor = IMAGES) -> list[str]:
    """The checkpoint gives the logits of NETWORK on ``images``; returns what is noted of it."""
    saved = load(path)
    found = checkpoint.build_model(saved, path).eval()
    with torch.no_grad():
        assert torch.allclose(found(IMAGES), NETWORK(images), atol=1e-5)
    return saved["notes"]


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.",
     "backbone.", "model.net.", "model._orig_mod.", "module.backbone.", "ema.", "encoder.",
     "student.encoder."],
)  # fmt: skip
@pytest.mark.parametrize("holder", [None, "state_dict", "model", "model_state_dict", "net"])
def test_prefixes_and_holders(tmp_path, prefix, holder):
    content = prefixed(prefix) if holder is None else {"epoch": 3, holder: prefixed(prefix)}
    torch.save(content, tmp_path / "a.ckpt")
    assert assert_same_network(tmp_path / "a.ckpt") == []


@pytest.mark.parametrize(
    "content",
    [
        {"model_ema": WEIGHTS},
        {"ema": {"module": WEIGHTS, "updates": 3}},
        {"state_dict": {"model": WEIGHTS}},
        {"optimizer": {"state": {}}, "ema_state_dict": prefixed("module.")},
        {"state_dict": WEIGHTS, "state_dict_ema": zeros()},  # the copy of an average comes last
    ],
)
def test_copies_and_nested_holders(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert_same_network(tmp_path / "a.pt")


MOMENTUM = {"state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}, "param_groups": [{}]}
BESIDE = {"epoch": 3, "acc": 0.5, "name": "best", "optimizer": MOMENTUM, "none": None}
OTHER_STATES = {"rng": {"cpu": torch.get_rng_state()}, "scaler": {"scale": torch.ones(1)}}


@pytest.mark.parametrize(
    "holder",
    ["model_state", "weights", "state", "student", "best_model", "model_dict", "weight", "any"],
)
def test_the_only_network_in_a_file_is_taken(tmp_path, holder):
    torch.save({**BESIDE, **OTHER_STATES, holder: prefixed("module.")}, tmp_path / "a.pt")
    assert assert_same_network(tmp_path / "a.pt") == []
    torch.save({"best": {holder: {**WEIGHTS, "epoch": 3}, **OTHER_STATES}}, tmp_path / "a.pt")
    assert assert_same_network(tmp_path / "a.pt") == []


@pytest.mark.parametrize("holder", [None, "state_dict"])
def test_other_values_between_the_tensors_are_left_out(tmp_path, holder):
    content = {**WEIGHTS, **BESIDE}
    torch.save(content if holder is None else {holder: content}, tmp_path / "a.pt")
    assert assert_same_network(tmp_path / "a.pt") == []


@pytest.mark.parametrize(
    "content", [{"student": WEIGHTS, "teacher": zeros()}, {"student": WEIGHTS, "b": {"c": zeros()}}]
)
def test_one_of_several_networks_is_not_guessed(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected one, got student, (teacher|b\.c);"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content, beside",
    [
        ({"state_dict": WEIGHTS, "state_dict_ema": zeros()}, "state_dict_ema beside state_dict"),
        ({"ema": {"module": zeros(), "updates": 3}, "net": WEIGHTS}, "ema.module beside net"),
    ],
)
def test_which_of_several_networks_is_taken_is_said(tmp_path, content, beside):
    torch.save({**content, **BESIDE}, tmp_path / "a.pt")
    taken = beside.split()[-1]
    assert assert_same_network(tmp_path / "a.pt") == [f"a.pt holds {beside}: read {taken} alone"]


@pytest.mark.parametrize("keys", [[f"k{i}" for i in range(500)], ["model", "state_dict", "net"]])
def test_a_dict_that_holds_itself_is_searched_once(tmp_path, keys):
    content: dict[str, object] = {}
    content.update(dict.fromkeys(keys, content))
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load(tmp_path / "a.pt")


def test_a_key_called_format_makes_no_checkpoint_of_ours(tmp_path):
    torch.save({"format": "pt", "state_dict": WEIGHTS}, tmp_path / "a.pt")
    assert_same_network(tmp_path / "a.pt")


def test_hidden_files_and_folders_are_no_weights(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    (tmp_path / "._weights.pt").write_bytes(b"of another system")
    (tmp_path / "older.bin").mkdir()
    assert checkpoint.locate(tmp_path) == tmp_path / "weights.pt"


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_what_a_profiler_has_counted_is_left_out(tmp_path, prefix):
    counted = {
        f"{prefix}{layer}{name}": torch.zeros(1, dtype=torch.float64)
        for layer in ("", "conv1.", "layer1.0.bn1.")
        for name in ("total_ops", "total_params")
    }
    torch.save({"state_dict": {**prefixed(prefix), **counted}}, tmp_path / "a.pt")
    assert assert_same_network(tmp_path / "a.pt") == []


def test_a_folder_with_one_file_of_weights_is_that_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for name in ("config.json", "optimizer.pt", "training_args.bin"):
        (tmp_path / name).write_text("{}")
    assert checkpoint.locate(tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"files of weights: .* got optimizer.pt, training_args.b"):
        checkpoint.locate(tmp_path)
    (tmp_path / "optimizer.pt").unlink()
    assert checkpoint.locate(tmp_path) == tmp_path / "training_args.bin"
    (tmp_path / "checkpoint.pt").write_text("")
    assert checkpoint.locate(tmp_path) == tmp_path / "checkpoint.pt"


def test_an_averaged_model_with_its_counter(tmp_path):
    averaged = AveragedModel(NETWORK).state_dict()
    assert "n_averaged" in averaged
    torch.save({"swa_model": averaged}, tmp_path / "a.pt")
    assert_same_network(tmp_path / "a.pt")


def test_an_average_beside_the_network_is_left_out_and_noted(tmp_path):
    both = {**prefixed("model."), **{f"ema_model.{key}": value for key, value in zeros().items()}}
    torch.save({"state_dict": both}, tmp_path / "a.ckpt")
    (note,) = assert_same_network(tmp_path / "a.ckpt")
    assert "holds ema_model beside model: read model alone" in note


@pytest.mark.parametrize("layer", ["normalizer", "normalize", "normalize_layer", "norm_layer"])
@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("means", "sds")])
def test_a_normalising_layer_under_another_name(tmp_path, layer, names):
    constants = {
        f"{layer}.{n}": v.view(1, 3, 1, 1) for n, v in zip(names, (MEAN, STD), strict=True)
    }
    torch.save({**constants, **prefixed("model.")}, tmp_path / "a.pt")
    assert_same_network(tmp_path / "a.pt", (IMAGES - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))


@pytest.mark.parametrize("name", ["criterion.weight", "loss_fn.weight", "train_acc.total"])
def test_losses_and_metrics_beside_the_network_are_left_out(tmp_path, name):
    torch.save({"state_dict": {**prefixed("model."), name: torch.ones(10)}}, tmp_path / "a.ckpt")
    (note,) = assert_same_network(tmp_path / "a.ckpt")
    assert f"holds {name.partition('.')[0]} beside model: read model alone" in note


def test_a_part_beside_the_network_is_not_dropped(tmp_path):
    torch.save({**prefixed("model."), "head.weight": torch.zeros(3, 10)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="fit none of .*the closest is .*: missing"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        {"acc": np.float64(93.1), "step": np.int64(3), "flag": np.bool_(True)},
        {"args": argparse.Namespace(lr=0.1, best=np.float32(3), out=Path("a"))},
        {"losses": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])},
        {"hyper_parameters": {"data": Path("data")}},
    ],
)
def test_plain_values_beside_the_weights(tmp_path, beside, legacy):
    torch.save(
        {"net": WEIGHTS, **beside},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    assert_same_network(tmp_path / "a.pt")


def test_such_values_are_not_built(tmp_path):
    torch.save({"args": argparse.Namespace(lr=0.1), "acc": np.float64(1)}, tmp_path / "a.pt")
    content, _ = tensorfile.read(tmp_path / "a.pt")
    assert {type(value) for value in content.values()} == {plain_values.Inert}
    with pytest.raises(Exception, match="argparse.Namespace"):  # allowed only while it is read
        torch.load(tmp_path / "a.pt", weights_only=True)


def test_safetensors(tmp_path):
    save_file(prefixed("model."), tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert_same_network(tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    for wrong in (data[:-4], struct.pack("<Q", 12) + b"{not json}  ", data[:8] + b"{" * 40):
        (tmp_path / "m.safetensors").write_bytes(wrong)
        with pytest.raises(InputError, match="cannot load .*(safetensors|truncated)"):
            load(tmp_path / "m.safetensors")
