"""The programs of docs/results as modules, and logs for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

import drf_fast
from drf_fast.certification.log import CertificationLog, Row

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"results_{name}", RESULTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def certified(path: Path, images: list[int], counts: list[int], n: int, **settings: Any) -> None:
    """A log whose certificates follow from its counts; every image is of class 0 and right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "method": "smoothadv", "sigma": 1.0, "n0": 100, "n": n, "alpha": 0.001,
        "budget": "fixed", "indices_total": len(images), **settings,
    }  # fmt: skip
    successes = torch.tensor(counts)
    lower = drf_fast.clopper_pearson_lower(successes, n, 0.001).tolist()
    radii = drf_fast.certified_radius(successes, n, sigma=1.0, alpha=0.001).tolist()
    with CertificationLog.create(path, described) as log:
        for row in zip(images, radii, counts, lower, strict=True):
            image, radius, count, p = row
            log.append(Row(image, 0, 0 if radius > 0 else -1, radius, 1.0, count, n, p))
