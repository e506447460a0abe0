"""A certified network for the attacks on it."""

from __future__ import annotations

import shutil

import linear
import pytest
from attacking import COMMON, N

from drf_fast.commands.cli import main


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    linear.saved(folder)
    out = str(folder / "certificates.tsv")
    flags = ("--n", str(N), "--skip", "40", "--max-images", "24", "--out", out)
    assert main(["certify", str(folder), *COMMON, *flags]) == 0
    return folder


@pytest.fixture
def run(certified, tmp_path):
    shutil.copytree(certified, tmp_path / "run")
    return tmp_path / "run"
