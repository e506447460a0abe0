"""benchmarks/on_gpu.sh without a GPU: its order, its time limits, and its output if parts fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import kernel_sessions
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
PARTS = [
    "device", "self_test", "times", "kernel_tests", "gpu_tests", "training", "certification",
    "memcheck", "racecheck", "initcheck",
]  # fmt: skip
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(out: Path, body: str, seconds: int = 60) -> tuple[int, list[str]]:
    """Run the script with ``body`` (shell) as its Python; its exit status and its summary."""
    python = out.parent / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    # As the tool does: findings do not change the exit status without --error-exitcode.
    (out.parent / "compute-sanitizer").write_text(
        "#!/bin/sh\ncode=0\n"
        'while [ "${1#--}" != "$1" ]; do [ "$1" = --error-exitcode ] && code=$2; shift 2; done\n'
        'echo "cached: ${PYTORCH_NO_CUDA_MEMORY_CACHING:-yes}"\n'
        f'"$@" || exit $?\n[ -e {out.parent}/faulty ] && exit "$code"\nexit 0\n'
    )
    (out.parent / "compute-sanitizer").chmod(0o755)
    environment = {
        **os.environ,
        "PYTHON": str(python),
        "GPU_SECONDS": str(seconds),
        "PATH": f"{out.parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", str(SCRIPT), str(out)], env=environment, capture_output=True)
    return done.returncode, (out / "summary.txt").read_text().splitlines()


def test_every_part_runs_in_its_order_and_leaves_its_output(tmp_path):
    status, summary = run(tmp_path / "out", 'echo "$@"')
    assert status == 0
    assert [line.split(":")[0] for line in summary] == PARTS
    assert all(": ok," in line for line in summary)
    assert "--self-test" in (tmp_path / "out" / "self_test.txt").read_text()
    files = (tmp_path / "out" / "gpu_tests.txt").read_text().split(" -m gpu ")[1].split()
    marked = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/**/test_*.py")
        if re.search(r"mark\.gpu\b", path.read_text())
    }
    assert marked - set(files) == {"tests/gpu/test_on_gpu.py"}  # which is kernel_tests
    assert len(files) > 5
    words = (tmp_path / "out" / "kernel_tests.txt").read_text().split()
    given = {ROOT / word for word in words if word.startswith("tests/")}
    assert {file for file in kernel_sessions.FILES if file.parent not in given} == given - {
        ROOT / "tests" / "kernels"
    }


def test_a_part_that_fails_stops_no_other_and_is_told(tmp_path):
    status, summary = run(
        tmp_path / "out", 'echo seen; case "$*" in *tests/kernels*) exit 1;; esac'
    )
    assert status == 1
    assert [line.split(":")[0] for line in summary if ": failed," in line] == ["kernel_tests"]
    assert len(summary) == len(PARTS)
    assert (tmp_path / "out" / "kernel_tests.txt").read_text() == "seen\n"


def test_what_a_sanitizer_finds_is_told(tmp_path):
    (tmp_path / "faulty").touch()
    status, summary = run(tmp_path / "out", "echo seen")
    assert status == 1
    failed = [line.split(":")[0] for line in summary if ": failed," in line]
    assert failed == ["memcheck", "racecheck", "initcheck"]
    # With torch's caching allocator an access beyond a tensor mostly hits another allocation.
    assert "cached: 1" in (tmp_path / "out" / "memcheck.txt").read_text()


def test_more_time_is_shared_out_and_a_second_run_writes_over_the_first(tmp_path):
    (tmp_path / "timeout").write_text('#!/bin/sh\nshift 4\necho "limit $1"; shift; exec "$@"\n')
    (tmp_path / "timeout").chmod(0o755)
    for _ in range(2):
        status, _ = run(tmp_path / "out", 'echo "$@"', seconds=5400)
        assert status == 0
    outputs = {name: (tmp_path / "out" / f"{name}.txt").read_text() for name in PARTS}
    assert "limit 1800" in outputs["kernel_tests"]
    assert "--force" in outputs["training"] and "--force" in outputs["certification"]


@pytest.mark.slow
def test_time_that_is_up_ends_the_running_part_and_keeps_what_it_wrote(tmp_path):
    hangs = 'echo begun; case "$*" in *gpu_times*) sleep 30;; esac'
    status, summary = run(tmp_path / "out", hangs, seconds=3)
    assert status == 1
    assert [line.split(",")[0].split(": ")[1] for line in summary][2] == "out of time"
    assert summary[-1].startswith("initcheck: no time left")
    assert (tmp_path / "out" / "times.txt").read_text() == "begun\n"
