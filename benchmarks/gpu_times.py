"""Times of the operations on a GPU: of the host's calls, in total, and of the kernels alone.

    python benchmarks/gpu_times.py

Where the first is the largest, calls are bound by the host; in a CUDA graph only the last remains.
The first two are of fifty calls in a row without the profiler. After each operation of ours a copy
of as many bytes is timed: no kernel that has to read its input and write its output can be faster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import published
import torch
from torch.profiler import ProfilerActivity, profile

import drf_fast

CALLS = 50


def show(name: str, call: Callable[[], Any], moved: int = 0) -> None:
    """Print microseconds of one call, averaged over ``CALLS``.

    Args:
        name: label of the line.
        call: the function to time.
        moved: bytes that it has to read and write; a copy of as many is timed after it.
    """
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    kernels = sum(
        event.self_device_time_total
        for event in found.key_averages()
        if event.device_type.name == "CUDA"
    )
    host, wall = (1e6 * seconds / CALLS for seconds in (host, wall))
    print(f"{name}: host {host:.0f} us, wall {wall:.0f} us, GPU {kernels / CALLS:.0f} us")
    if moved:
        source = torch.zeros(moved // 8, device="cuda")  # 4 bytes are read, and as many written
        target = torch.empty_like(source)
        show("  a copy of as many bytes", lambda: target.copy_(source))


def gradient(loss: Callable[..., Any], shape: tuple[int, int, int], dtype: Any, **options: Any):
    images, samples, classes = shape
    logits = torch.randn(images * samples, classes, device="cuda", dtype=dtype).requires_grad_()
    labels = torch.randint(classes, (images,), device="cuda")
    return lambda: torch.autograd.grad(loss(logits, labels, samples, **options), logits)


def losses() -> None:
    large = (4096, 8, 1000)
    moved = 2 * 4 * math.prod(large)  # the logits, and their gradient
    for shape in ((64, 4, 10), (256, 16, 10), large):
        ours = gradient(drf_fast.smooth_ce, shape, torch.float32)
        show(f"smooth_ce {shape}", ours, 2 * 4 * math.prod(shape))
        show(f"published smooth_ce {shape}", gradient(published.smooth_ce, shape, torch.float32))
    half = gradient(drf_fast.smooth_ce, large, torch.bfloat16)
    show(f"smooth_ce {large} bfloat16", half, moved // 2)
    show(
        f"consistency_loss {large}",
        gradient(drf_fast.consistency_loss, large, torch.float32, lam=1.0),
        moved,
    )
    show(
        f"macer_loss {large}",
        gradient(drf_fast.macer_loss, large, torch.float32, sigma=0.5, lam=12.0),
        moved,
    )


def images(shape: tuple[int, ...], samples: int = 4, sigma: float = 0.5) -> None:
    x = torch.rand(shape, device="cuda")
    grad = torch.randn(shape[0] * samples, *shape[1:], device="cuda")
    noise = {"seed": 1, "image_ids": torch.arange(shape[0], device="cuda")}
    step = {"step_size": 0.5, "ball": drf_fast.HardBall(1.0), "sigma": sigma}
    named = f"{shape}, {samples} samples"
    size = x.nbytes
    show(
        f"noisy_repeat {named}",
        lambda: drf_fast.noisy_repeat(x, sigma, samples, **noise),
        size * (1 + samples),
    )
    show(f"published noisy_repeat {named}", lambda: published.noisy_repeat(x, sigma, samples))
    show(
        f"adversary_step {named}",
        lambda: drf_fast.adversary_step(grad, x, x, **step, **noise),
        size * (3 + 2 * samples),  # reads x, x_adv and grad, writes x_adv and noisy copies
    )
    levels = (255 * x).to(torch.uint8)
    show(
        f"noisy_levels {named}",
        lambda: drf_fast.noisy_levels(levels, sigma, samples, **noise),
        levels.nbytes + size * samples,
    )


def counting() -> None:
    logits = torch.randn(100_000, 10, device="cuda")
    counts = torch.zeros(1, 10, dtype=torch.int64, device="cuda")
    show("vote (100000, 10)", lambda: drf_fast.vote(logits, counts), logits.nbytes)
    hits = torch.randint(50_000, 100_000, (10_000,), device="cuda")
    n = torch.full_like(hits, 100_000)
    show(
        "clopper_pearson_lower 10000", lambda: drf_fast.clopper_pearson_lower(hits, n, alpha=0.001)
    )
    show(
        "certified_radius 10000",
        lambda: drf_fast.certified_radius(hits, n, sigma=0.5, alpha=0.001),
    )


if __name__ == "__main__":
    versions = f"torch {torch.__version__}, drf_fast {drf_fast.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    losses()
    images((256, 1, 28, 28))
    images((64, 3, 224, 224))
    counting()
