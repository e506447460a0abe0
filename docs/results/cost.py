"""What the paper's protocol costs, from the benchmarks of a training step and of certification.

    python docs/results/cost.py docs/benchmarks.json

docs/benchmarks.json is what ``python benchmarks/report.py`` makes of a run of the benchmarks.

Scaled by rows through the network: a step of the benchmark is 64 images at m = 4 and T = 10, the
recipe of smoothadv; an image of the other benchmark is certified with 100 + 10,000 samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STEP, IMAGES_OF_A_STEP = "training step, SmoothAdv, LeNet, 64 images, m = 4, T = 10", 64
CERTIFY, IMAGES, SAMPLES = "certify 20 images, n = 10000, LeNet", 20, 10_100
# MNIST's training and test images; the epochs of a recipe; the samples of a certificate.
TRAIN, TEST, EPOCHS, PAPER = 60_000, 10_000, 90, 100_100
# Passes through the network for a copy of an image, and copies m, of each row of Table 1 (forward
# with its backward pass counted once): T + 1 where there is an adversary.
ROWS = {
    "gaussian": 1 * 1,
    "stability": 1 * 1 + 1,
    "macer": 1 * 16,
    "smoothmix": (4 + 2) * 4,
    "smoothadv": (10 + 1) * 4,
    "smoothadv+drf": (10 + 1) * 4,
    "consistency": (10 + 1) * 4,
    "consistency+drf": (10 + 1) * 4,
}
SIGMAS = 3
# One H100, docs/h100.md: noisy copies a second, forward and backward (28,967 images of m = 2 and
# T = 4 a second, drf-fast train in bf16), and forward alone (drf-fast certify in fp32).
H100_TRAINING, H100_CERTIFYING = 28_967 * 2 * (4 + 1), 3_700_000


def table(path: Path) -> str:
    """A markdown table: one line a way to compute, seconds and days."""
    groups = json.loads(path.read_text(encoding="utf-8"))
    found = {
        group: {provider: entry["seconds"] for provider, entry in groups[group].items()}
        for group in (STEP, CERTIFY)
    }
    pairs = [
        ("published code, eager fp32", "eager", "eager, batch 400"),
        ("drf_fast, fp32", "drf_fast fp32", "drf_fast fp32"),
        ("drf_fast, bf16", "drf_fast bf16", "drf_fast bf16"),
        ("drf_fast, bf16, certification compiled", "drf_fast bf16", "drf_fast bf16 compile"),
    ]
    lines = [
        "| | s/step | s/epoch | s/certified image, n = 100,000 | one row of Table 1 "
        "(smoothadv, h) | the whole table (days) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    copies = ROWS["smoothadv"] * IMAGES_OF_A_STEP
    rates = [
        (name, found[STEP][training], found[CERTIFY][certifying] / IMAGES / SAMPLES)
        for name, training, certifying in pairs
    ]
    rates.append(("drf_fast on an H100", copies / H100_TRAINING, 1 / H100_CERTIFYING))
    for name, step, sample in rates:
        epoch = step * TRAIN / IMAGES_OF_A_STEP
        image = sample * PAPER
        row = EPOCHS * epoch + TEST * image
        passes = sum(ROWS.values()) / ROWS["smoothadv"]
        whole = SIGMAS * (EPOCHS * epoch * passes + len(ROWS) * TEST * image)
        lines.append(
            f"| {name} | {step:.4f} | {epoch:.0f} | {image:.3f} | {row / 3600:.1f} | "
            f"{whole / 86400:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
