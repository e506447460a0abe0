"""Checks an installed wheel: the C++ core counts and bounds, on the one OpenMP runtime of torch.

Run it with the Python of an environment into which the wheel was installed, outside the checkout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

import drf_fast

root = Path(__file__).resolve().parents[1]
place = Path(drf_fast.__file__).resolve().parent
if root in place.parents:
    sys.exit(f"expected the installed wheel, got the checkout in {place}; run this elsewhere")

command = [sys.executable, "-m", "drf_fast", "doctor", "--json"]
doctor = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
core = doctor["extensions"]["drf_fast._C"]
if not core["usable"]:
    sys.exit(f"expected the C++ core of the wheel, got: {core['why not']}")

with drf_fast.use_backend("native"):
    # Enough rows that the votes are counted by several threads, if there are several.
    logits = torch.eye(3).repeat(100_000, 1)
    counts = drf_fast.vote(logits, torch.zeros(2, 3, dtype=torch.int64))
    radius = float(drf_fast.certified_radius(990, 1000, sigma=0.5, alpha=0.001))
if counts.tolist() != [[50_000] * 3] * 2:
    sys.exit(f"vote: expected 50,000 for each of 2 x 3 classes, got {counts.tolist()}")
if not 0.96 < radius < 1.0:
    sys.exit(f"certified_radius: expected a radius near 0.98 of 990 in 1,000, got {radius}")

runtimes = doctor["threads"].get("OpenMP runtimes loaded", [])
torch_folder = Path(torch.__file__).resolve().parent.parent
if sys.platform == "linux" and [torch_folder in Path(path).parents for path in runtimes] != [True]:
    sys.exit(f"expected one OpenMP runtime, that of torch in {torch_folder}, got {runtimes}")
print(f"drf_fast {drf_fast.__version__} in {place}: C++ core usable, R = {radius:.6f}, {runtimes}")
