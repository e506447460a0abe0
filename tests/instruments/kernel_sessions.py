"""Sessions of tests on the Triton kernels, each in processes of its own, for both ways to run them.

There the tests of tests/kernels run, and once more those tests of an operation that take any
backend, on its kernel. A failure shows the output of that session.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
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
    "adversary_step",
    "attack",
    "ops",
)
FILES = [
    *sorted((TESTS / "kernels").glob("test_*.py")),
    *(TESTS / "operations" / f"test_{name}.py" for name in ANY_BACKEND),
]


def passes(files: Sequence[Path | str], processes: int, **environment: str) -> None:
    """All files, or tests named by their ids, in ``processes`` processes of one thread each."""
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
