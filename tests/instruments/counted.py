"""Counts of what a program of each kernel executes, by running its PTX: docs/kernels.json.

    python tests/instruments/counted.py                        with the installed Triton
    PYTHONPATH=folder python tests/instruments/counted.py      with one unpacked into a folder

records the figures of this Triton beside those of others and prints the table of docs/kernels.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import on_ptx
import torch
import triton
from kernel_cases import Case

RECORD = Path(__file__).parents[2] / "docs" / "kernels.json"
CASES = (
    Case("smooth_ce", (4, 4, 10)),
    Case("smooth_ce", (4, 8, 1000)),
    Case("smooth_ce", (4, 8, 1000), torch.bfloat16),
    Case("consistency_loss", (4, 4, 10)),
    Case("consistency_loss", (4, 8, 1000)),
    Case("macer_loss", (4, 16, 10)),
    Case("macer_loss", (4, 8, 1000)),
    Case("noisy_repeat", (4, 4, 3, 32, 32)),
    Case("noisy_repeat", (4, 4, 3, 32, 32), torch.bfloat16),
    Case("adversary_step", (4, 4, 1, 28, 28)),
    Case("adversary_step", (4, 4, 3, 32, 32)),
)
Counted = dict[str, int]


def of(case: Case) -> Counted:
    """Per program of the first launch of a case; the reduction of losses is left out."""
    on_ptx.counts.clear()
    with on_ptx.bridge():
        case.run()
    _, found = on_ptx.counts[0]
    figures = asdict(found)
    programs = figures.pop("programs")
    return {name: round(figure / programs) for name, figure in figures.items()}


def recorded() -> dict[str, dict[str, Counted]]:
    """By the version of Triton, then by the case."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def table(record: dict[str, dict[str, Counted]]) -> str:
    names = ("instructions", "exchanges", "shared_bytes", "global_bytes")
    lines = [
        "| a program of | Triton | instructions | exchanges | bytes shared | bytes global |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case in map(str, CASES):
        for version, figures in record.items():
            if case in figures:
                counts = " | ".join(f"{figures[case][name]:,}" for name in names)
                lines.append(f"| {case} | {version} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    record = recorded()
    record[triton.__version__] = {str(case): of(case) for case in CASES}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    print(table(record))
