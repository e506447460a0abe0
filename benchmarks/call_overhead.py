"""Overhead of Python around one call of the C++ core, on tensors so small that it dominates.

    python benchmarks/call_overhead.py [--rounds 2000]

Each public function is compared with the call of ``drf_fast._C`` that it makes, its arguments
prepared, and with the raw operation; in turn, in one process with one thread. The difference of the
medians is the time of checks, dispatcher and allocation; the goal is at most 10 us.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import torch

from drf_fast import functional
from drf_fast.backends.native import library
from drf_fast.ops.checks import on_cpu

CALLS = 20  # of a round

Call = Callable[[], object]


def vote() -> dict[str, Call]:
    """Two rows of ten classes."""
    core = library.load()
    logits, counts = torch.randn(2, 10), torch.zeros(1, 10, dtype=torch.int64)
    addresses = (logits.data_ptr(), "float32", 2, 10, counts.data_ptr(), 1, 1)
    return {
        "core": functools.partial(core.vote, *addresses),
        "operation": functools.partial(torch.ops.drf_fast.vote.default, logits, counts),
        "public": functools.partial(functional.vote, logits, counts),
    }


def noisy_repeat() -> dict[str, Call]:
    """Two copies of one image of 16 pixels, with a seed and an image id."""
    core = library.load()
    x, ids = torch.rand(1, 1, 4, 4), torch.tensor([5])
    out = torch.empty(2, 1, 4, 4)
    words = {
        "x": x.data_ptr(), "out": out.data_ptr(), "dtype": "float32", "batch": 1, "num_samples": 2,
        "channels": 1, "area": 16, "channels_last": False, "image_ids": ids.data_ptr(),
        "sample_offset": 0, "stream": 0, "key": 3, "sigma": 0.5, "threads": 1,
    }  # fmt: skip
    zero, key = on_cpu(0, torch.int64), on_cpu(3, torch.int64)
    sigma = on_cpu(0.5, torch.float64)
    return {
        "core": lambda: (core.noisy_repeat(**words), out)[0],  # keeps alive what is written
        "operation": lambda: torch.ops.drf_fast.noisy_repeat.default(
            x, sigma, key, ids, zero, 2, "train"
        ),
        "public": lambda: functional.noisy_repeat(x, 0.5, 2, seed=3, image_ids=ids),
    }


def smooth_ce(gradient: bool) -> dict[str, Call]:
    """Two samples of one image, ten classes; with or without the gradient."""
    core = library.load()
    logits, target = torch.randn(2, 10), torch.tensor([4])
    images = logits.reshape(1, 2, 10)
    loss, grad = torch.empty(()), torch.empty(1, 2, 10)
    words = {
        "logits": logits.data_ptr(), "dtype": "float32", "batch": 1, "samples": 2, "classes": 10,
        "logits_image_stride": 20, "logits_sample_stride": 10, "target": target.data_ptr(),
        "reduction": "mean", "loss": loss.data_ptr(), "grad": grad.data_ptr() if gradient else 0,
        "grad_image_stride": 20, "grad_sample_stride": 10, "threads": 1,
    }  # fmt: skip
    logits.requires_grad_(gradient)
    return {
        "core": lambda: (core.smooth_ce(**words), loss, grad)[0],  # keeps alive what is written
        "operation": lambda: torch.ops.drf_fast.smooth_ce.default(images, target, "mean", gradient),
        "public": lambda: functional.smooth_ce(logits, target, 2),
    }


def measured(calls: dict[str, Call], rounds: int, share: float) -> dict[str, float]:
    """Microseconds of a call of each, measured in turn: a quantile of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            if at:  # the first round selects the backend
                times[name].append((time.perf_counter() - began) / CALLS * 1e6)
    return {name: sorted(own)[int(share * len(own))] for name, own in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--quantile", type=float, default=0.5, help="0.1 on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        "vote": vote(),
        "noisy_repeat": noisy_repeat(),
        "smooth_ce, no gradient": smooth_ce(False),
        "smooth_ce, gradient": smooth_ce(True),
    }
    print("us a call                 core  operation  public  around the core")
    for name, calls in cases.items():
        found = measured(calls, arguments.rounds, arguments.quantile)
        around = found["public"] - found["core"]
        print(
            f"{name:24} {found['core']:5.2f} {found['operation']:10.2f} {found['public']:7.2f} "
            f"{around:16.2f}"
        )


if __name__ == "__main__":
    main()
