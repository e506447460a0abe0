"""What a network could not take in training is said once and recorded with the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.training import graphs, loop
from drf_fast.training.graphs import GraphedSteps
from drf_fast.training.step import descend

MODULE = """
import torch
from torch import nn


class Picky(nn.Sequential):
    def __init__(self, num_classes):
        convolutions = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 5, 4)
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(72, num_classes))

    def refuse(self, x):
        pass

    def forward(self, x):
        if x.sum() > 1e9:  # cannot be traced, so the code runs as it is
            raise ValueError
        self.refuse(x)
        return super().forward(x)


class NoHalf(Picky):
    def refuse(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")


class NoChannelsLast(Picky):
    def refuse(self, x):
        if not self[1].weight.is_contiguous():
            raise RuntimeError("weights must be contiguous")

"""
SMALL = [
    "--train-images", "64", "--epochs", "1", "--batch-size", "16", "--method", "gaussian",
    "--device", "cpu", "--certify-images", "0",
]  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    """The name of a module of such networks in the current folder."""
    name = f"picky_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def train(*flags: str) -> dict[str, Any]:
    """The run's config.json after training, which must agree with its checkpoint."""
    assert main(["train", "--out", "run", *SMALL, *flags]) == 0
    config = json.loads(Path("run/config.json").read_text())
    saved = checkpoint.load(Path("run/checkpoint.pt"))["config"]
    assert saved.get("left_out") == config.get("left_out")
    return config


def test_a_network_that_takes_everything_has_nothing_to_record(module):
    assert "left_out" not in train("--arch", f"{module}:Picky", "--max-steps", "1")


def test_bf16_is_recorded_and_kept_by_a_resumed_run(module, capsys):
    flags = ["--arch", f"{module}:NoHalf", "--memory-format", "contiguous"]
    config = train(*flags, "--precision", "bf16", "--max-steps", "1")
    assert config["precision"] == "fp32" and list(config["left_out"]) == ["bf16"]
    assert "not implemented for 'BFloat16'" in config["left_out"]["bf16"]
    assert capsys.readouterr().err.count("and is trained in fp32") == 1
    assert train(*flags, "--resume", "--max-steps", "2")["left_out"] == config["left_out"]
    again = train(*flags, "--precision", "bf16", "--resume", "--max-steps", "3")  # the same command
    assert again["left_out"] == config["left_out"] and again["precision"] == "fp32"


@pytest.mark.slow
def test_a_sweep_of_such_a_network_is_finished(module, capsys):
    words = ["sweep", "--seeds", "0", *SMALL[:-2], "--memory-format", "contiguous", "--out", "s"]
    words += ["--certify-images", "2", "--n", "60", "--n0", "20"]
    assert main([*words, "--arch", f"{module}:NoHalf", "--precision", "bf16"]) == 0
    assert Path("s/summary.tsv").exists()


def test_a_memory_format_is_recorded(module, capsys):
    config = train("--arch", f"{module}:NoChannelsLast", "--max-steps", "1")
    assert config["memory_format"] == "contiguous"
    reason = config["left_out"]["channels_last"]
    assert "weights must be contiguous" in reason
    assert capsys.readouterr().err.count("cannot take channels_last images") == 1


def test_compilation_is_recorded(module, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", _Raising)
    flags = ["--memory-format", "contiguous", "--compile", "--max-steps", "1"]
    config = train("--arch", f"{module}:Picky", *flags)
    assert config["left_out"] == {"compile": "RuntimeError: C++ compile error"}
    assert capsys.readouterr().err.count("is trained uncompiled") == 1
    monkeypatch.setattr(torch, "compile", None)  # what failed then is not tried again
    again = train("--arch", f"{module}:Picky", *flags[:-1], "2", "--resume")
    assert again["left_out"] == config["left_out"]


class _Raising(torch.nn.Module):
    """Stands for what ``torch.compile`` returns where its first call fails."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("C++ compile error")


def test_a_step_that_cannot_be_captured_is_recorded_when_it_shows(module, monkeypatch, capsys):
    prepared = loop.prepare

    def prepare(*args: Any) -> Any:
        run = prepared(*args)
        run.graphs = GraphedSteps(descend)
        return run

    def refused(*args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(graphs, "_Graph", refused)
    # Without a GPU there are no streams.
    monkeypatch.setattr(graphs.GraphedSteps, "_aside", _plain)
    flags = ["--arch", f"{module}:Picky", "--memory-format", "contiguous"]
    assert "left_out" not in train(*flags, "--max-steps", "2")
    config = train(*flags, "--force")
    told = "RuntimeError: operation not permitted when stream is capturing"
    assert config["left_out"] == {"cuda_graph": told}
    assert capsys.readouterr().err.count("it runs uncaptured, slower") == 1


def _plain(self: Any, run: Any, batch: Any, options: Any) -> torch.Tensor:
    return self._descend(run, batch, options)
