"""Cost and effect of the options of certify, on one trained network: docs/certification.md.

    drf-fast train --out runs/default --certify-images 0
    python benchmarks/certification.py runs/default --out runs/certification

Each log is written by ``drf-fast certify`` in a process of its own, one after the other, and stays
in the folder, so that an interrupted run is resumed. Times are sums of the log's column "time",
without loading, measuring and compiling.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.certification.log import read_log, sidecar
from drf_fast.runtime.files import write_json

RADIUS = 0.5
COMPILED = ["--precision", "bf16", "--compile"]
LOGS = {
    "fixed": ["--n", "100000", "--max-images", "100", *COMPILED],
    "anytime": ["--n", "100000", "--max-images", "100", *COMPILED, "--budget", "anytime",
                "--radius", str(RADIUS)],
    "tolerance": ["--n", "100000", "--max-images", "100", *COMPILED, "--budget", "anytime",
                  "--tolerance", "0.05"],
    "fp32, batch 64": ["--n", "10000", "--max-images", "100", "--batch-size", "64"],
    "fp32, batch 256": ["--n", "10000", "--max-images", "100", "--batch-size", "256"],
    "fp32, batch 512": ["--n", "10000", "--max-images", "100", "--batch-size", "512"],
    "bf16, batch 256": ["--n", "10000", "--max-images", "100", "--batch-size", "256",
                        "--precision", "bf16"],
}  # fmt: skip


def certify(run: Path, folder: Path, name: str, skip: int) -> Path:
    """The log of one set of options, resumed if it is incomplete."""
    out = folder / f"{name.replace(', batch ', '-')}.tsv"
    words = [
        sys.executable, "-m", "drf_fast", "certify", str(run), "--out", str(out), "--resume",
        "--skip", str(skip), "--memory-format", "channels_last", *LOGS[name],
    ]  # fmt: skip
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return out


def budgets(logs: dict[str, Path]) -> dict[str, Any]:
    """Time, samples and decisions of early stopping and of the fixed budget."""
    fixed = read_log(logs["fixed"])
    result: dict[str, Any] = {}
    for name in ("fixed", "anytime", "tolerance"):
        log = read_log(logs[name])
        assert log.n is not None  # drf_fast wrote the log
        result[name] = {
            "seconds": float(log.seconds.sum()),
            "samples": int(log.n.sum()),
            "acr": float(np.where(log.correct, log.radius, 0.0).mean()),
            f"certified_accuracy_at_{RADIUS}": float((log.correct & (log.radius >= RADIUS)).mean()),
            "times_fixed": float(fixed.seconds.sum() / log.seconds.sum()),
        }
    early = read_log(logs["anytime"])
    assert early.n is not None
    differ = np.flatnonzero((early.radius >= RADIUS) != (fixed.radius >= RADIUS))
    result["decisions_that_differ"] = [
        {"idx": int(fixed.idx[at]), "fixed_radius": float(fixed.radius[at]),
         "anytime_radius": float(early.radius[at]), "anytime_samples": int(early.n[at])}
        for at in differ
    ]  # fmt: skip
    return result


def batch_sizes(logs: dict[str, Path]) -> dict[str, Any]:
    """How far the counts of LeNet depend on the batch and on the precision."""
    base = read_log(logs["fp32, batch 256"])
    result = {}
    for name in ("fp32, batch 64", "fp32, batch 512", "bf16, batch 256"):
        other = read_log(logs[name])
        assert other.count is not None and base.count is not None
        apart = np.abs(other.count - base.count)
        result[name] = {
            "images_with_other_counts": int((apart > 0).sum()),
            "largest_difference_of_counts": int(apart.max()),
            "largest_difference_of_radii": float(np.abs(other.radius - base.radius).max()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the ways to certify.")
    parser.add_argument("run", type=Path, help="run folder of the network")
    parser.add_argument("--out", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--save", type=Path, help="write the figures into this JSON file")
    parser.add_argument("--skip", type=int, default=20, help="every so many-th test image")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logs = {name: certify(arguments.run, arguments.out, name, arguments.skip) for name in LOGS}
    result = {
        "budgets": budgets(logs),
        "against_fp32_at_batch_256": batch_sizes(logs),
        "environment": json.loads(sidecar(logs["fixed"]).read_text())["environment"],
    }
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_json(arguments.save, result)


if __name__ == "__main__":
    main()
