"""The Python of README.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import drf_fast

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parents[2] / "README.md").read_text(),
    flags=re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:30] for block in BLOCKS])
def test_a_block_of_the_readme_runs(block):
    assert len(block.splitlines()) <= 10
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 6, 6), torch.randint(10, (8,))
    linear = nn.Linear(36, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    before = linear.weight.detach().clone()
    names: dict[str, Any] = {
        "drf_fast": drf_fast,
        "torch": torch,
        "F": F,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(images, labels)],
        "x": images,
        "y": labels,
        "m": 2,
        "i": 7,
    }
    if "certify" in block:
        names["x"] = images[0]
        block = block.replace("100_000", "1_000")
    exec(block, names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    if "optimizer.step" in block:
        assert not torch.equal(before, linear.weight)


def test_every_link_leads_somewhere():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)#]+)\)", (root / "README.md").read_text())
    assert links and all((root / link).exists() for link in links)


def test_there_are_blocks_for_every_drop_in():
    text = "".join(BLOCKS)
    for name in ("smooth_ce", "SmoothedClassifier", "attack", "HardBall", "SoftBall"):
        assert f"drf_fast.{name}" in text
