"""Foreign checkpoints that cannot be used: each is refused with one sentence, and never run."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drf_fast import models
from drf_fast.checkpoints.ours import load_any as load
from drf_fast.errors import InputError

Weights = dict[str, torch.Tensor]


def resnet(arch: str) -> Weights:
    torch.manual_seed(0)
    return models.build(arch, 10, (3, 32, 32)).state_dict()


def lenet() -> Weights:
    return models.build("lenet", 10, (1, 28, 28)).state_dict()


def prefixed(weights: Weights) -> Weights:
    return {f"1.{key}": value for key, value in weights.items()}


def checkpoint(state: Weights, arch: str = "cifar_resnet20") -> dict[str, Any]:
    return {"epoch": 90, "arch": arch, "state_dict": state}


def write(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "published.pth.tar", **options)
    return folder / "published.pth.tar"


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


def refusal(path: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, *arguments, **options)
    text = str(caught.value).replace(str(path), path.name)
    assert "\n" not in text and 40 < len(text) < 660, text  # some hold a command to type
    return text


@pytest.mark.parametrize(
    "content, found",
    [
        ({"state_dict": {}, "epoch": Exploit()}, "(posix.mkdir)"),
        ({"state_dict": {"conv1.weight": Exploit()}}, "(posix.mkdir)"),
        ({"state_dict": {}, "args": argparse.Namespace(lr=Exploit())}, "(posix.mkdir)"),
        ({"state_dict": {}, "best": np.array([Exploit()])}, "(posix.mkdir)"),
        ({"state_dict": {}, "log": logging.getLogger("a")}, "(logging.getLogger)"),
        (nn.Linear(2, 2), "(torch.nn.modules.linear.Linear)"),
    ],
    ids=["exploit", "as a weight", "among arguments", "in an array", "logger", "whole network"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch, content, found, legacy):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    text = refusal(path)
    assert "holds code or other objects" in text and "if you trust its author" in text
    assert found in text
    assert not (tmp_path / "exploited").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        {"module": resnet("resnet20")},
        {"model": None, "state_dict_ema": resnet("resnet20")},
        {"network": {"state_dict": resnet("resnet20")}},
    ],
    ids=["module", "ema", "nested"],
)
def test_the_conversion_finds_weights_where_the_reader_does(tmp_path, content):
    torch.save({**content, "log": logging.getLogger("a")}, tmp_path / "a.pt")
    subprocess.run(["sh", "-c", converting(tmp_path / "a.pt")], check=True, cwd=tmp_path)
    assert load(tmp_path / "weights.pt")["arch"] == "resnet20"


@pytest.mark.slow
def test_the_conversion_writes_nothing_where_it_finds_nothing(tmp_path):
    torch.save([logging.getLogger("a")], tmp_path / "a.pt")
    done = subprocess.run(["sh", "-c", converting(tmp_path / "a.pt")], cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "weights.pt").exists()


def converting(path: Path) -> str:
    """The command that the refusal of a file shows."""
    with pytest.raises(InputError) as caught:
        load(path)
    command = "python -c " + str(caught.value).split("python -c ")[1]
    return command.replace("python", sys.executable, 1)


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["state_dict", "net", "model", None])
@pytest.mark.parametrize("name", ["published.pt", "it's $HOME `x` 1.pt"])
def test_the_conversion_that_the_refusal_shows_works(tmp_path, monkeypatch, name, holder):
    monkeypatch.chdir(tmp_path)
    weights = resnet("resnet20")
    content = {**({holder: weights} if holder else weights), "log": logging.getLogger("a")}
    torch.save(content, name)
    subprocess.run(["sh", "-c", converting(Path(name))], check=True)
    saved = load(tmp_path / "weights.pt")
    assert all(torch.equal(saved["model"][key], weights[key]) for key in weights)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, left, legacy):
    path = write(tmp_path, resnet("resnet20"), _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    text = refusal(path)
    assert "truncated" in text or "damaged" in text


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("epoch\tloss\n")
    assert "truncated file or another format" in refusal(path)
    assert "no such file" in refusal(tmp_path / "none.pt")
    assert "is a directory" in refusal(tmp_path)


def scripted(path: Path) -> None:
    traced: Any = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    traced.save(str(path))


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.zeros((3, 3)))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit
@pytest.mark.parametrize(
    "write, expected",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "'git lfs pull'"),
        (b"\n<!doctype html><html>Not found</html>", "got a web page; download the file itself"),
        (b"GGUF\x03\0\0\0" + bytes(100), "got GGUF"),
        (b"\x93NUMPY\x01\0" + bytes(100), "got arrays of NumPy; save them as tensors"),
        (arrays, "got arrays of NumPy; save them as tensors"),
        (scripted, "torch.save(torch.jit.load('"),
    ],
    ids=["git-lfs", "page", "GGUF", "npy", "npz", "TorchScript"],
)
def test_a_file_of_another_format_is_named(tmp_path, write, expected):
    path = tmp_path / "a.pt"
    if callable(write):
        write(path)
    else:
        path.write_bytes(write)
    text = refusal(path)
    assert expected in text and "weights_only" not in text and "damaged" not in text


@pytest.mark.parametrize(
    "content, expected",
    [
        (3, "got int"),
        ([torch.zeros(3)], "got list"),
        ({}, "got the keys (none)"),
        ({"arch": "lenet", "state_dict": {}}, "got the keys arch, state_dict"),
        ({"state_dict": [1, 2]}, "got the keys state_dict"),
        ({"state_dict": {"a": torch.zeros(3), "b": 3}}, "got the keys state_dict"),
        ({"weights": {"a": torch.zeros(3)}}, "got the keys weights"),
        ({3: torch.zeros(3)}, "got the keys 3"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, expected):
    text = refusal(write(tmp_path, content))
    assert "is no drf_fast checkpoint and holds no state dict" in text and expected in text


def changed(**changes: Any) -> Weights:
    """A published ResNet-20; ``None`` takes a tensor out, a name may hold __ for a full stop."""
    weights = {**resnet("resnet20")}
    for name, value in changes.items():
        weights[name.replace("__", ".")] = value
    return {key: value for key, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    "state, expected",
    [
        (
            changed(fc__bias=None, bn1__weight=None),
            "do not fit resnet20, named by the file: missing bn1.weight, fc.bias; pass the file",
        ),
        (
            changed(extra=torch.zeros(3)),
            "named by the file: unexpected extra; pass the file of such a network, or load them in "
            "the factory (--arch package.module:factory) and leave the checkpoint out",
        ),
        (
            changed(conv1__weight=torch.zeros(16, 3, 5, 5)),
            "wrong shape conv1.weight (16, 3, 3, 3), got (16, 3, 5, 5); pass",
        ),
        (
            resnet("resnet56"),
            "do not fit resnet20, named by the file: unexpected layer1.3.conv1.weight, "
            "layer1.3.bn1.weight, layer1.3.bn1.bias and",
        ),
        (changed(conv1__weight=torch.full((16, 3, 3, 3), torch.nan)), "got NaN or infinity"),
        (changed(fc__weight=torch.zeros(10, 64, dtype=torch.int8)), "got torch.int8"),
        (changed(fc__weight=torch.zeros(10, 64, dtype=torch.complex64)), "got torch.complex64"),
        (changed(fc__weight=torch.zeros(10, 64).to_sparse()), "torch.sparse_coo"),
        (changed(fc__weight=torch.zeros(10, 64, device="meta")), "got torch.float32 (.*meta)"),
        (changed(fc__weight=torch.zeros(1).expand(10**12, 64)), "values, got fewer that its"),
        (changed(fc__weight=torch.zeros(1, 64), fc__bias=torch.zeros(1)), "of 2 or more classes"),
        ({"fc.weight": torch.zeros(10, 64)}, "holds no classifier of images"),
        (changed(module__fc__bias=torch.zeros(10)), "differ only by 'module.'"),
    ],
    ids=[
        "missing", "extra", "shape", "depth", "nan", "int8", "complex", "sparse", "meta",
        "expanded", "one class", "no convolution", "twice",
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_with_what_differs(tmp_path, state, expected):
    text = refusal(write(tmp_path, checkpoint(state)))
    head, _, tail = expected.partition(".*")
    assert head in text and tail in text


def test_the_remedy_names_the_architecture_that_fits(tmp_path):
    path = write(tmp_path, checkpoint(resnet("resnet56"), "cifar_resnet20"))
    assert refusal(path).endswith("pass --arch resnet56")
    assert "do not fit lenet, named by --arch: missing" in refusal(path, "lenet")
    assert "resnet50, named by --arch" in refusal(path, "resnet50")
    assert load(path, "resnet56")["arch"] == "resnet56"


def test_an_unknown_architecture_is_refused(tmp_path):
    state = {**resnet("resnet20"), "dense1.weight": torch.zeros(3, 3)}
    text = refusal(write(tmp_path, checkpoint(state, "cifar_densenet40")))
    assert "the weights of cifar_densenet40 in" in text
    assert "the closest is resnet20: unexpected dense1.weight" in text
    renamed = {key.replace("conv1", "first"): value for key, value in lenet().items()}
    text = refusal(write(tmp_path, renamed))
    assert "the closest is lenet: missing conv1.weight, conv1.bias; unexpected first.weight" in text
    path = write(tmp_path, resnet("resnet20"))
    assert "--arch must be one of lenet, resnet20" in refusal(path, "vgg")


@pytest.mark.parametrize(
    "first, expected",
    [
        ({"0.weight": torch.zeros(3)}, "got weight (3,)"),
        ({"0.mean": torch.zeros(3), "0.std": torch.zeros(3)}, "the std above 0"),
        ({"0.mean": torch.full((3,), torch.nan)}, "finite mean"),
        ({"0.mean": torch.zeros(3), "0.std": torch.ones(1)}, "got mean (3,), std (1,)"),
        ({"0.std": torch.ones(3)}, "got std (3,)"),
        ({"0.mean": torch.zeros(1), "0.std": torch.ones(1)}, "constants of 3 channels, got 1"),
        ({"0.mean": torch.zeros(10**6)}, "got mean (1000000,)"),
    ],
)
def test_a_first_layer_that_does_not_normalise_is_refused(tmp_path, first, expected):
    path = write(tmp_path, checkpoint({**first, **prefixed(resnet("resnet20"))}))
    text = refusal(path)
    assert "cannot use the first layer" in text and expected in text


def test_flags_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path, resnet("resnet20"))
    assert "--normalize must be one of none" in refusal(path, normalize="svhn")
    path = write(tmp_path, lenet())
    assert "for images of 3 channels, got 1" in refusal(path, normalize="cifar10")
