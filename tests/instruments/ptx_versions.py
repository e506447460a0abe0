"""All kernel tests on executed PTX, with several versions of Triton: the table of docs/kernels.md.

    python tests/instruments/ptx_versions.py FOLDER 3.2.0 3.6.0 ... [-- ARGUMENTS OF PYTEST]

Each version is installed from the package index into a folder of its own inside FOLDER, without
torch. A line of the table is printed when a version has finished; pytest's output is in
FOLDER/VERSION.log. The exit status is 1 if a test failed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = """| Triton | tests passed | failed | launches executed | kernels | faults | minutes |
|---|---:|---:|---:|---:|---:|---:|"""


def installed(version: str, folder: Path) -> Path:
    """The folder of this Triton, installed there if it is not yet."""
    target = folder / f"triton-{version}"
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
    return target


def line(version: str, folder: Path, arguments: list[str]) -> tuple[str, bool]:
    """A line of the table, and whether all tests passed."""
    counts, log = folder / f"{version}.counts", folder / f"{version}.log"
    counts.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w") as output:
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "", "tests/kernels", *arguments],
            env={
                **os.environ,
                "DRF_FAST_TEST_KERNELS": "ptx",
                "DRF_FAST_TEST_COUNTS": str(counts),
                "OMP_NUM_THREADS": "1",
                "PYTHONUNBUFFERED": "1",  # so that the log shows progress
                "PYTHONPATH": str(installed(version, folder)),
                "TRITON_CACHE_DIR": str(folder / f"cache-{version}"),
            },
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    minutes = (time.monotonic() - start) / 60
    summary = log.read_text().splitlines()[-1]
    passed, failed = (
        int(found[1]) if (found := re.search(rf"(\d+) {word}", summary)) else 0
        for word in ("passed", "failed")
    )
    sessions = [json.loads(one) for one in counts.read_text().splitlines()]
    used = {one["triton"] for one in sessions}
    assert used == {version}, f"expected Triton {version}, got {used}"
    launches, faults = (sum(one[name] for one in sessions) for name in ("launches", "faults"))
    kernels = len({kernel for one in sessions for kernel in one["kernels"]})
    cells = (version, passed, failed, f"{launches:,}", kernels, faults, f"{minutes:.0f}")
    return f"| {' | '.join(map(str, cells))} |", status == 0


def main(words: list[str]) -> int:
    end = words.index("--") if "--" in words else len(words)
    words, arguments = words[:end], words[end + 1 :]
    folder = Path(words[0]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(HEAD, flush=True)
    all_passed = True
    for version in words[1:]:
        text, passed = line(version, folder, arguments)
        all_passed = all_passed and passed
        print(text, flush=True)
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
