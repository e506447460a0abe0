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
