"""The paper's protocol at full size against its Table 1, from the logs of full.sh.

python docs/results/full.py RUN_FOLDER > docs/results/full.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.certification.log import Log, read_log
from drf_fast.report import paper

METHODS = {
    "gaussian": "gaussian",
    "stability": "stability",
    "macer": "macer",
    "smoothmix": "smoothmix",
    "smoothadv": "smoothadv",
    "smoothadv-drf": "smoothadv+drf",
    "consistency": "consistency",
    "consistency-drf": "consistency+drf",
}  # recipes, and their methods in the paper's table
PUBLISHED = "-published"  # what full.sh adds to a recipe read as published code reads it


def control_variate(
    deep: np.ndarray, wide_of_deep: np.ndarray, wide: np.ndarray
) -> tuple[float, float]:
    """The mean over all images of what only a part was looked at closely, and its standard error.

    Of N images all have a value w (the certified radius at a small n), and M of them the value d
    that is wanted (at a large n). With the means over all and over the part,

        estimate = mean_N(w) + mean_M(d - w),
        error = s(d - w) / sqrt(M) * sqrt(1 - M / N),

    s the sample standard deviation. What w explains of d costs nothing of M; the error is that of
    a simple random part, for these N images and this network, not for other images or seeds.

    Args:
        deep, wide_of_deep: (M,) d and w of the same M >= 2 images, float64.
        wide: (N,) w of all images, N >= M.

    Raises:
        ValueError: the sizes do not fit.

    Reference:
        Cochran 1977, Sampling techniques, section 7.3 (difference estimator).
    """
    part, whole = len(deep), len(wide)
    if len(wide_of_deep) != part or not 2 <= part <= whole:
        raise ValueError(
            f"expected both values of the same 2 to {whole} images, got {part} and "
            f"{len(wide_of_deep)}"
        )
    left = deep - wide_of_deep
    error = float(left.std(ddof=1)) / math.sqrt(part) * math.sqrt(1 - part / whole)
    return float(wide.mean() + left.mean()), error


def row(deep: Log, wide: Log) -> dict[str, Any] | None:
    """One network: the estimate for all images, and what it is made of; None if not in Table 1."""
    config = deep.config or {}
    sigma, training = config["sigma"], config["training"]
    recipe = deep.path.stem.split("-", 1)[1].rpartition("-")[0]
    printed = paper.table().get((sigma, METHODS.get(recipe.removesuffix(PUBLISHED), "")))
    if printed is None:
        print(f"{deep.path.stem}: left out, not in the paper's Table 1", file=sys.stderr)
        return None
    radii = [np.where(log.correct, log.radius, 0.0) for log in (deep, wide)]
    of_all = dict(zip(wide.idx.tolist(), radii[1].tolist(), strict=True))
    same = np.array([of_all[index] for index in deep.idx.tolist()])
    acr, error = control_variate(radii[0], same, radii[1])
    return {
        "sigma": sigma,
        "method": recipe,
        "seed": training["seed"],
        "epochs": training["epochs"],
        "precision": training["precision"],
        "acr": acr,
        "error": error,
        "paper": printed.acr,
        "difference": acr - printed.acr,
        "of_the_part": {"images": len(deep.idx), "n": config["n"], "acr": float(radii[0].mean())},
        "of_all": {
            "images": len(wide.idx),
            "n": (wide.config or {})["n"],
            "acr": float(radii[1].mean()),
        },
        "certified": {
            f"{radius:.2f}": 100 * float((deep.correct & (deep.radius >= radius)).mean())
            for radius in printed.certified
        },
    }


def report(runs: Path) -> list[dict[str, Any]]:
    """A row for each network of Table 1 whose logs are both whole, in the order of METHODS."""
    logs = [(deep, runs / "n1000" / deep.name) for deep in (runs / "n100000").glob("*.tsv")]
    whole = [pair for pair in logs if all(map(finished, pair))]
    rows = [made for deep, wide in whole if (made := row(read_log(deep), read_log(wide)))]
    order = [recipe + suffix for recipe in METHODS for suffix in ("", PUBLISHED)]
    return sorted(rows, key=lambda r: (-r["sigma"], order.index(r["method"]), r["seed"]))


def finished(log: Path) -> bool:
    """Whether every image that the log is meant for is in it: a line each, below the header."""
    settings = log.with_suffix(".json")
    if not (log.exists() and settings.exists()):
        return False
    return log.read_bytes().count(b"\n") == json.loads(settings.read_text())["indices_total"] + 1


if __name__ == "__main__":
    json.dump({"rows": report(Path(sys.argv[1]))}, sys.stdout, indent=1)
    print()
