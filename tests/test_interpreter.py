"""Runs the Triton kernels in Triton's interpreter, which needs processes of its own.

There the tests of tests/kernels run, and once more those tests of an operation that take any
backend, on its kernel. A failure here shows the output of that session.
"""

from __future__ import annotations

import importlib.util
import os
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
NOTHING_COLLECTED = 5

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
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_in_the_interpreter(file, pytestconfig):
    chosen = pytestconfig.option.markexpr.replace("proofs", "").strip()  # such as "not slow"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            chosen or "not proofs",
            str(file),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    allowed = {0, NOTHING_COLLECTED} if chosen else {0}
    if result.returncode not in allowed:
        pytest.fail(result.stdout[-20000:] + result.stderr[-2000:], pytrace=False)
