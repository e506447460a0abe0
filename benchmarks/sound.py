"""Cost of sound certificates over ordinary ones, on a trained network: docs/certification.md.

    drf-fast train --out runs/default --certify-images 0
    python benchmarks/sound.py runs/default --out runs/sound --images 500 --n 100000

Calls of both are timed in turn, and the median ratio of adjacent calls is reported, of wall-clock
and of processor time (which other programs on the machine affect less; with several threads it
includes their busy waiting). The goals are 2.5 for the noise and 1.1 for certificates. Each log is
written by ``drf-fast certify`` in a process of its own and stays in the folder, so that an
interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import drf_fast
from drf_fast import data
from drf_fast.certification.log import Log, read_log, sidecar
from drf_fast.checkpoints import ours
from drf_fast.runtime.files import write_json

SIGMA = 0.5
SHAPES = [(256, 4, 1, 28, 28), (16, 2, 3, 224, 224)]  # images, copies, and the image
BATCH = 256
TERMS = ["--memory-format", "channels_last", "--batch-size", str(BATCH)]


def ratio(sound: Callable[[], Any], ordinary: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Time of ``sound`` over that of ``ordinary``, the median of alternating rounds."""
    for call in (sound, ordinary):
        call()  # the first calls warm up
    found: dict[str, list[float]] = {"by_the_clock": [], "processor_time": []}
    for at in range(rounds):
        taken = {}
        for call in (sound, ordinary) if at % 2 else (ordinary, sound):
            start = time.perf_counter(), time.process_time()
            call()
            taken[call] = time.perf_counter() - start[0], time.process_time() - start[1]
        for clock, above, below in zip(found, taken[sound], taken[ordinary], strict=True):
            found[clock].append(above / below)
    return {clock: statistics.median(values) for clock, values in found.items()}


def noise(rounds: int) -> dict[str, dict[str, float]]:
    """``noisy_levels`` over ``noisy_repeat``."""
    found = {}
    for batch, m, *image in SHAPES:
        u = torch.randint(0, 256, (batch, *image), dtype=torch.uint8)
        x = u.float() / 255
        found[str((batch, m, *image))] = ratio(
            lambda u=u, m=m: drf_fast.noisy_levels(u, SIGMA, m),
            lambda x=x, m=m: drf_fast.noisy_repeat(x, SIGMA, m),
            rounds,
        )
    return found


def certificates(run: Path, n: int, rounds: int) -> dict[str, float]:
    """CERTIFY of one image, with padded passes."""
    path = ours.locate(run)
    saved = ours.load_any(path)
    images = data.load(saved["config"]["data"], "test")
    model = ours.build_model(saved, path)
    x = images.float_images([0])

    def certify(sound: bool) -> Callable[[], Any]:
        smoothed = drf_fast.SmoothedClassifier(
            model,
            images.num_classes,
            saved["config"]["sigma"],
            memory_format="channels_last",
            sound=sound,
        )
        return lambda: smoothed.certify_batch(x, 100, n, 0.001, BATCH)

    return ratio(certify(True), certify(False), rounds)


def log_of(run: Path, folder: Path, sound: bool, n: int, count: int) -> Path:
    """The log of one kind of noise, resumed if it is incomplete."""
    out = folder / f"{'sound' if sound else 'ordinary'}-n{n}-{count}.tsv"
    images = data.load("mnist-mini", "test")
    words = [
        sys.executable, "-m", "drf_fast", "certify", str(run), "--out", str(out), "--resume",
        "--skip", str(len(images) // count), "--max-images", str(count), "--n", str(n),
        "--sound" if sound else "--no-sound", *TERMS,
    ]  # fmt: skip
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return out


def compared(sound: Log, ordinary: Log) -> dict[str, float]:
    """Average certified radii, and the paired difference with its standard error over images."""
    radii = [np.where(log.correct, log.radius, 0.0) for log in (sound, ordinary)]
    apart = radii[0] - radii[1]
    return {
        "images": len(sound),
        "acr_sound": float(radii[0].mean()),
        "acr_ordinary": float(radii[1].mean()),
        "difference": float(apart.mean()),
        "standard_error": float(apart.std(ddof=1) / len(apart) ** 0.5),
        "seconds_sound": float(sound.seconds.sum()),
        "seconds_ordinary": float(ordinary.seconds.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of sound certificates.")
    parser.add_argument("run", type=Path, help="run folder of the network")
    parser.add_argument("--out", type=Path, help="folder of the logs; without it, times alone")
    parser.add_argument("--save", type=Path, help="write the figures into this JSON file")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30, help="of each measurement of time")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "noisy_levels_over_noisy_repeat": noise(arguments.rounds),
        "certify_over_ordinary_n_10000": certificates(
            arguments.run, 10_000, max(1, arguments.rounds // 3)
        ),
        "threads": torch.get_num_threads(),
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        sound, ordinary = (
            log_of(arguments.run, arguments.out, kind, arguments.n, arguments.images)
            for kind in (True, False)
        )
        result["acr"] = {"n": arguments.n, **compared(read_log(sound), read_log(ordinary))}
        result["environment"] = json.loads(sidecar(sound).read_text())["environment"]
    print(json.dumps(result, indent=1))
    if arguments.save:
        write_json(arguments.save, result)


if __name__ == "__main__":
    main()
