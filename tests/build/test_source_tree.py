"""A source checkout that shadows the installation says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_source_tree_where_nothing_is_built_says_so_once(tmp_path):
    unbuilt = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "kernels")
    shutil.copytree(ROOT / "drf_fast", tmp_path / "drf_fast", ignore=unbuilt)
    code = (
        # without the finder of an editable install, which would find what is built elsewhere
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
        "import torch, drf_fast; x = torch.rand(2, 3); y = torch.tensor([0, 1])\n"
        "for _ in range(2): print(float(drf_fast.smooth_ce(x, y, num_samples=1)))\n"
        # where "auto" would otherwise fail on CUDA tensors
        "from drf_fast.backends import triton; print(triton.why_not('cuda'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count(f"runs from the source tree {tmp_path}") == 1
    *values, why_not = done.stdout.splitlines()
    assert len(values) == 2 and why_not.startswith("the kernels are no part of a source tree")
