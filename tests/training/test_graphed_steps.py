"""Training steps as CUDA graphs: the run of uncaptured steps, whatever the method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands.cli import main
from drf_fast.config import run_files

pytestmark = pytest.mark.gpu

# Two epochs of 9 steps, the last one of each smaller; the second has another learning rate.
SMALL = [
    "--device", "cuda", "--train-images", "280", "--epochs", "2", "--batch-size", "32",
    "--lr-drops", "0.5", "--memory-format", "contiguous", "--certify-images", "0",
]  # fmt: skip
METHODS = {
    "gaussian": [],
    "stability": [],
    "macer": ["--num-samples", "16"],
    "smoothmix": ["--no-drf", "--mix-warmup", "2"],
    "smoothmix-near": ["--no-drf", "--mix-step", "1"],
    "smoothmix+drf": ["--drf", "--epsilon", "2"],
    "smoothadv": ["--no-drf", "--warmup-epochs", "2"],
    "smoothadv+drf": ["--drf", "--lambda0", "0.4", "--lambda-every", "3"],
    "smoothadv+drf-parts": ["--drf", "--accumulate", "2"],
    "consistency": ["--no-drf", "--precision", "bf16"],
    "consistency+drf": ["--drf", "--form", "excess", "--grad-norm", "batch"],
    "catrs": ["--no-drf", "--num-samples", "4", "--catrs-n", "20"],
    "catrs+drf": ["--drf", "--num-samples", "4", "--catrs-n", "20"],
}


def train(folder: Path, *flags: str) -> dict[str, Any]:
    assert main(["train", "--out", str(folder), *SMALL, *flags]) == 0
    return checkpoint.load(folder / run_files.CHECKPOINT)


@pytest.mark.parametrize("name", METHODS)
def test_graphs_train_as_uncaptured_steps_do(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    method = name.split("+")[0].split("-")[0]
    flags = ["--method", method, *METHODS[name]]
    if method == "catrs":
        train(tmp_path / "teacher", "--method", "gaussian")
        flags += ["--catrs-teacher", str(tmp_path / "teacher")]
    graphed = train(tmp_path / "graphed", *flags)
    assert "cannot be captured" not in capsys.readouterr().err
    plain = train(tmp_path / "plain", "--no-cuda-graph", *flags)
    assert graphed["step"] == plain["step"] == 18
    start = train(tmp_path / "start", "--max-steps", "1", *flags)
    for key, value in plain["model"].items():
        moved = float((value - start["model"][key]).norm())
        # bfloat16 and sums in another order part the runs a little at each step.
        limit = 0.15 if "bf16" in flags else 0.02
        assert float((graphed["model"][key] - value).norm()) <= limit * moved, key
    if "ball" in plain:
        assert torch.allclose(graphed["ball"]["lam"], plain["ball"]["lam"], rtol=1e-3)
        assert float(plain["ball"]["lam"]) != 1.0
    sums = graphed["totals"]["sums"], plain["totals"]["sums"]
    assert torch.allclose(*sums, rtol=0.05, atol=0.5)


def test_a_network_that_reads_a_value_is_trained_uncaptured(tmp_path, capsys, monkeypatch):
    (tmp_path / "reading_network.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        logits = super().forward(x)\n"
        "        return logits if float(logits.sum()) != 0.125 else -logits\n"
        "def make(num_classes):\n"
        "    return Network(torch.nn.Flatten(), torch.nn.Linear(784, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    trained = train(tmp_path / "run", "--arch", "reading_network:make")
    assert trained["step"] == 18
    assert capsys.readouterr().err.count("it runs uncaptured, slower") == 1
    sys.modules.pop("reading_network")
