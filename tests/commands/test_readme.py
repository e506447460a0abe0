"""README.md and docs/: the Python runs as it stands there, flags exist, links lead somewhere."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import drf_fast
from drf_fast import models
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.commands import cli
from drf_fast.config import look, options, run_files

ROOT = Path(__file__).parents[2]
PROJECT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.name}-{number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
}


def write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    content = {
        "model": models.build("lenet", 10, (1, 28, 28)).state_dict(),
        "arch": "lenet",
        "num_classes": 10,
        "image_shape": [1, 28, 28],
        "config": {"sigma": 0.5, "data": "mnist-mini", "method_label": "smoothadv"},
    }
    checkpoint.save(folder / run_files.CHECKPOINT, content)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_a_block_runs(block, tmp_path, monkeypatch):
    assert len(block.splitlines()) <= 10
    if "load_run" in block:
        monkeypatch.chdir(tmp_path)
        write_run(Path(re.findall(r'load_run\("(.*?)"\)', block)[0]))
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 6, 6), torch.randint(10, (8,))
    linear = nn.Linear(36, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    before = linear.weight.detach().clone()
    names: dict[str, Any] = {
        "drf_fast": drf_fast,
        "torch": torch,
        "nn": nn,
        "F": F,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(images, labels)],
        "x": images,
        "y": labels,
        "m": 2,
        "i": 7,
        "mean": (0.5,),
        "std": (0.25,),
    }
    if "certify_dataset" in block:
        monkeypatch.chdir(tmp_path)
        names["smoothed"] = drf_fast.SmoothedClassifier(model, 10, 0.5)
        names["test_set"] = torch.utils.data.TensorDataset(
            torch.rand(100, 1, 6, 6), torch.arange(100) % 10
        )
    if "certify" in block:
        names["x"] = images[0]
        block = block.replace("100_000", "1_000")
    exec(block, names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    if "optimizer.step" in block:
        assert not torch.equal(before, linear.weight)


@pytest.mark.parametrize("page", [*PAGES, *PROJECT[1:]], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert links or page.name not in ("README.md", "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_command_exists(page):
    configs = {
        name.removesuffix("Config").lower(): {
            field.name.replace("_", "-") for field in dataclasses.fields(config)
        }
        for name, config in {**vars(options), **vars(look)}.items()
        if name.endswith("Config") and dataclasses.is_dataclass(config)
    }
    configs["sweep"] |= configs["train"]
    configs = {command: {*flags, "help"} for command, flags in configs.items()}
    assert configs.keys() >= cli._COMMANDS.keys()
    lines = re.findall(
        r"(?:drf-fast|drf_fast) ([a-z]+)(.*?)(?:`|$)", page.read_text(), re.MULTILINE
    )
    commands = [(command, rest) for command, rest in lines if command in configs]
    for command, rest in commands:
        for flag in re.findall(r"--([a-z0-9][a-z0-9-]*)", rest):
            known = configs[command]
            assert flag in known or flag.removeprefix("no-") in known, (command, flag)
    assert commands or page.name not in ("README.md", "index.md", "train.md", "certify.md")


@pytest.mark.parametrize(
    "page", [PAGES[0], ROOT / "docs" / "drop-in.md"], ids=lambda page: page.name
)
def test_there_are_blocks_for_every_drop_in(page):
    text = "".join(block for name, block in BLOCKS.items() if name.startswith(page.name))
    for name in ("smooth_ce", "SmoothedClassifier", "attack", "HardBall", "SoftBall"):
        assert f"drf_fast.{name}" in text


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "reference.md").read_text()
    shown = re.findall(r"^::: (\S+)", page, re.MULTILINE)
    for name in set(drf_fast.__all__) - {"__version__"}:
        value = getattr(drf_fast, name)
        # Of a module the page shows what the module defines, and nothing that it imports.
        places = (value.__module__, f"{value.__module__}.{value.__qualname__}")
        assert any(place in shown for place in places), name


def test_the_citation_names_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [drf_fast.__version__]
    assert f"## {drf_fast.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_what_contributing_names_exists():
    """Every file of a recipe, but for those that the recipe makes."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    made = ("doubled", "doubling", "tempered", "stripes", "linear")
    paths = re.findall(r"`((?:drf_fast|tests|csrc|kernels|docs)/[\w/]+\.\w+)`", text)
    assert len(paths) > 20
    assert [p for p in paths if not (ROOT / p).exists() and not any(m in p for m in made)] == []
