"""The command ``attack`` on a small network, with settings that take a second."""

from __future__ import annotations

from pathlib import Path

from drf_fast.commands.cli import main

N = 200
COMMON = ("--arch", "linear:Linear", "--device", "cpu", "--batch-size", "200")
SEARCH = (
    "--n", "300", "--epsilons", "0.8,0.2", "--num-samples", "8", "--steps", "4", "--ddn-steps", "5",
    "--max-images", "24",
)  # fmt: skip


def attack(run: Path, *words: str) -> int:
    return main(["attack", str(run), *COMMON, *SEARCH, *words])


def without_times(path: Path) -> list[str]:
    return [line.rpartition("\t")[0] for line in path.read_text().splitlines()]
