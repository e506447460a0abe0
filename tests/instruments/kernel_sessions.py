"""Test sessions on the Triton kernels, in subprocesses: interpreted, as PTX, or on a GPU.

Each runs the tests of tests/kernels, and the tests of operations that take any backend, on the
kernels. A failure shows the output of that session.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ANY_BACKEND = (
    "smooth_ce",
    "consistency_loss",
    "macer_loss",
    "loss_backward",
    "noise",
    "noisy_levels",
    "adversary_step",
    "attack",
    "ops",
)
# With SHARE > 1, about one case in SHARE runs of each test that has more cases than _FEW_CASES.
SHARE, _FEW_CASES = int(os.environ.get("DRF_FAST_TEST_SHARE", "1")), 3
FILES = [
    *sorted((TESTS / "kernels").glob("test_*.py")),
    *(TESTS / "operations" / f"test_{name}.py" for name in ANY_BACKEND),
]


def passes(files: Sequence[Path | str], processes: int, **environment: str) -> None:
    """All files, or tests by their ids, pass in ``processes`` processes of one thread."""
    divided = ["-n", str(processes)] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *divided]
    command += ["-m", "not exhaustive"]  # the default leaves the slow ones out
    result = subprocess.run(
        [*command, "--durations=10", *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        pytest.fail(result.stdout[-20000:] + result.stderr[-2000:], pytrace=False)
    print(result.stdout[-3000:])
    summary = result.stdout.splitlines()[-1]
    counted = re.search(r"(\d+) passed", summary)
    assert counted and int(counted[1]) > len(files), f"expected every file to run, got: {summary}"


def chosen(names: Sequence[str]) -> list[bool]:
    """Which of the tests belong to this session's share; at least one case of each function.

    A checksum of its id selects a case, independently of the order of dtypes, losses and shapes.
    """
    functions = [name.split("[")[0] for name in names]
    cases = collections.Counter(functions)
    marks = [zlib.crc32(name.encode()) for name in names]
    least: dict[str, int] = {}
    for function, mark in zip(functions, marks, strict=True):
        least[function] = min(mark, least.get(function, mark))
    return [
        cases[function] <= _FEW_CASES or mark % SHARE == 0 or mark == least[function]
        for function, mark in zip(functions, marks, strict=True)
    ]
