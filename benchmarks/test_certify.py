"""CERTIFY of MNIST images with LeNet: the engine, against the loop of the 2019 reference code.

Compilation is not timed: every provider runs once before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch

import drf_fast
from drf_fast import data, models
from drf_fast.runtime import machine

SIGMA, N0, N, ALPHA, IMAGES = 0.5, 100, 10_000, 0.001, 20
PROVIDERS = (
    "eager, batch 400",
    "eager, batch 1000",
    "drf_fast fp32",
    "drf_fast fp32 compile",
    "drf_fast bf16",
    "drf_fast bf16 compile",
)


def certification(provider: str) -> Callable[[], Any]:
    torch.manual_seed(0)
    x = data.load("mnist-mini", "test").float_images(list(range(IMAGES)))
    x = x.to(machine.pick_device("auto"))
    if provider.startswith("eager"):
        batch = int(provider.split()[-1])
        model = published.lenet().to(x.device).eval()
        return lambda: [published.certify(model, image, SIGMA, N0, N, ALPHA, batch) for image in x]
    precision = provider.split()[1]
    model = models.build("lenet", 10, (1, 28, 28)).eval()
    model = machine.place(model, x.device, "auto", precision, (1, 28, 28)).network
    smoothed = drf_fast.SmoothedClassifier(
        model, 10, SIGMA, precision=precision, compile=provider.endswith("compile")
    )
    return lambda: smoothed.certify_batch(x, N0, N, ALPHA)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_certify(run, provider):
    pixels = IMAGES * (N0 + N) * 28 * 28
    group = f"certify {IMAGES} images, n = {N}, LeNet"
    run(group, provider, certification(provider), 4 * pixels, rounds=2)
