"""Networks as people write them, on the command line: trained 5 steps, certified, predicted."""

from __future__ import annotations

import sys
from pathlib import Path

import networks
import numpy as np
import pytest
from PIL import Image

from drf_fast.commands.cli import main

FACTORIES = """
import functools, sys
from torch import nn
sys.path.insert(0, {folder!r})
import networks


class Grey(nn.Module):
    def __init__(self, name, num_classes):
        super().__init__()
        self.network = networks.make(name, num_classes)

    def forward(self, x):
        return self.network(x.mean(1, keepdim=True))


for number, name in enumerate(networks.NETWORKS):
    globals()[f"make{{number}}"] = functools.partial(Grey, name)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 grey training images of 12x12 in 3 classes, so that a batch of 8 leaves one."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 17), ("test", 3)):
        for at in range(count):
            place = folder / split / f"class{at % 3}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{at}.png")
    return folder


@pytest.mark.parametrize("number", range(len(networks.NETWORKS)), ids=list(networks.NETWORKS))
def test_trained_certified_and_predicted_by_command(
    number, pictures, tmp_path, monkeypatch, capsys
):
    module = f"factories_{tmp_path.name}".replace("-", "_")
    folder = str(Path(networks.__file__).parent)
    (tmp_path / f"{module}.py").write_text(FACTORIES.format(folder=folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    source = ["--data", "imagefolder", "--data-dir", str(pictures)]
    arch = ["--arch", f"{module}:make{number}", "--device", "cpu"]
    words = ["train", *source, *arch, "--method", "smoothadv", "--steps", "1", "--out", "run"]
    words += ["--num-samples", "1", "--batch-size", "8", "--epochs", "3", "--max-steps", "5"]
    assert main([*words, "--certify-images", "0"]) == 0
    assert "joins the one before" in capsys.readouterr().err
    some = ["--max-images", "2", "--n", "50", "--batch-size", "64"]
    assert main(["certify", "run", *arch, *some, "--n0", "10", "--out", "log.tsv"]) == 0
    assert len(Path("log.tsv").read_text().splitlines()) >= 3
    capsys.readouterr()
    assert main(["predict", "run", *arch, *some]) == 0
    assert capsys.readouterr().out.startswith("idx\tlabel\tpredict\tcorrect\n")
