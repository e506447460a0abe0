"""CUDA graphs: the kernels' launches read no value, and no launch argument follows a number.

A number that became a launch argument would stay the same at all replays of a graph.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_step import CLASSES, B, M, OnOneDevice

from drf_fast.backends import triton
from drf_fast.runtime.level_table import level_table

# Made here: a table is computed on the CPU, before any capture.
TABLES = {"cpu": level_table(0.5), "meta": level_table(0.5, torch.device("meta"))}


def kernel_arguments(device: str, factor: float) -> dict[str, tuple[Any, ...]]:
    """Arguments of each raw operation that has a kernel; ``factor`` changes every number."""

    def number(value: float) -> torch.Tensor:
        return torch.full((), value * factor, dtype=torch.float64, device=device)

    x = torch.full((B, 3, 8, 8), 0.5, device=device)
    grad = torch.full((B * M, 3, 8, 8), 0.5, device=device)
    logits = torch.zeros(B, M, CLASSES, device=device)
    target = torch.zeros(B, dtype=torch.int64, device=device)
    name = torch.full((), int(1e9 * factor), device=device)
    ids = torch.arange(B, device=device)
    offset = torch.full((), int(8 * factor), device=device)
    three = number(0.5), number(0.25), number(0.125)
    levels = x.to(torch.uint8), *TABLES[device][:2]
    return {
        "noisy_repeat": (x, number(0.5), name, ids, offset, M, "train"),
        "noisy_repeat_backward": (grad, M),
        "noisy_levels": (*levels, name, ids, offset, M, "estimation", torch.float32),
        "smooth_ce": (logits, target, "mean", True),
        "consistency_loss": (logits, target, number(2.0), number(0.5), "mean", True),
        "macer_loss": (logits, target, *three, number(16.0), True),
        "adversary_step": (
            *(grad, x, x, *three, number(0.3), name, ids),
            *("prox", "image", [0.0, 1.0]),
        ),
    }


OPERATIONS = tuple(kernel_arguments("meta", 1.0))


def launches(operation: str, device: str, factor: float) -> list[Any]:
    pytest.importorskip("triton", reason="the kernels need triton")
    from drf_fast.kernels.launch import recording  # pyright: ignore[reportMissingImports]

    arguments = kernel_arguments(device, factor)[operation]
    with recording() as recorded:
        triton.load(operation)(*arguments)
    assert recorded
    return recorded


def test_every_kernel_is_launched_here():
    assert set(OPERATIONS) == set(triton.MODULES)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_is_launched_without_reading_a_value(operation):
    with OnOneDevice():
        launches(operation, "meta", 1.0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_launch_argument_follows_a_number(operation):
    def beside_memory(factor: float) -> list[Any]:
        return [
            (
                launch.kernel,
                launch.programs,
                launch.num_warps,
                launch.constants,
                [value for value in launch.arguments if not isinstance(value, torch.Tensor)],
            )
            for launch in launches(operation, "cpu", factor)
        ]

    assert beside_memory(1.0) == beside_memory(0.75)
    assert not any(isinstance(v, float) for *_, rest in beside_memory(1.0) for v in rest)
