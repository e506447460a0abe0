"""Folders that several files read."""

from __future__ import annotations

from pathlib import Path

import pytest
from class_folders import write_classes


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "test", 2, seed=1000)
    return tmp_path
