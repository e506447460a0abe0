"""Runs the Triton kernels in Triton's interpreter, which needs processes of its own.

There the tests of tests/kernels run, and once more those tests of an operation that take any
backend, on its kernel. A failure here shows the output of that session.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
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
    *(TESTS / f"test_{name}.py" for name in ANY_BACKEND),
]
PROCESSES = ["-n", "2"] if importlib.util.find_spec("xdist") else []

pytestmark = [
    pytest.mark.proofs,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the whole session is interpreted"
    ),
]


@pytest.mark.timeout(1800)
def test_in_the_interpreter():
    """One session for all files, in two processes, each of one thread: its tensors are small."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PROCESSES]
    result = subprocess.run(
        [*command, "--durations=10", *map(str, FILES)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        pytest.fail(result.stdout[-20000:] + result.stderr[-2000:], pytrace=False)
    print(result.stdout[-3000:])
    summary = result.stdout.splitlines()[-1]
    counted = re.search(r"(\d+) passed", summary)
    assert counted and int(counted[1]) > len(FILES), f"expected every file to run, got: {summary}"
