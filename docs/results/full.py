"""The paper's protocol at full size against its Table 1, from the logs of full.sh.

python docs/results/full.py RUN_FOLDER > docs/results/full.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Network(NamedTuple):
    """A trained network: its recipe, and its logs at the large and at the small n."""

    sigma: float
    recipe: str
    seed: int
    deep: Log
    wide: Log

    @property
    def printed(self) -> paper.PaperRow | None:
        """The row of the paper's Table 1."""
        return paper.table().get((self.sigma, METHODS.get(self.recipe.removesuffix(PUBLISHED), "")))

    @property
    def order(self) -> tuple[Any, ...]:
        """Where its row stands: as in the paper's table."""
        recipe = self.recipe.removesuffix(PUBLISHED)
        return -self.sigma, list(METHODS).index(recipe), self.recipe, self.seed


def radii(log: Log) -> dict[int, float]:
    """The certified radius of each image, 0 where it is misclassified or abstained on."""
    found = np.where(log.correct, log.radius, 0.0)
    return dict(zip(log.idx.tolist(), found.tolist(), strict=True))


def estimate(deep: dict[int, float], wide: dict[int, float]) -> tuple[float, float]:
    """``control_variate`` of values by image; ``wide`` has every image of ``deep``."""
    parts = deep.values(), [wide[image] for image in deep], wide.values()
    return control_variate(*(np.array(list(values)) for values in parts))


def row(network: Network) -> dict[str, Any]:
    """One network: the estimate for all images, and what it is made of."""
    deep, wide, printed = network.deep, network.wide, network.printed
    assert printed is not None and deep.config is not None and wide.config is not None
    training, of_part, of_all = deep.config["training"], radii(deep), radii(wide)
    acr, error = estimate(of_part, of_all)
    return {
        "sigma": network.sigma,
        "method": network.recipe,
        "seed": network.seed,
        "epochs": training["epochs"],
        "precision": training["precision"],
        "acr": acr,
        "error": error,
        "paper": printed.acr,
        "difference": acr - printed.acr,
        "of_the_part": {
            "images": len(of_part),
            "n": deep.config["n"],
            "acr": float(np.mean(list(of_part.values()))),
        },
        "of_all": {
            "images": len(of_all),
            "n": wide.config["n"],
            "acr": float(np.mean(list(of_all.values()))),
        },
        "certified": {
            f"{radius:.2f}": 100 * float((deep.correct & (deep.radius >= radius)).mean())
            for radius in printed.certified
        },
    }


def pair(drf: Network, baseline: Network) -> dict[str, Any]:
    """DRF minus its baseline, image by image: two networks of one sigma, seed and reading."""
    assert drf.printed is not None and baseline.printed is not None
    deep, wide = (
        {image: value - without[image] for image, value in with_drf.items() if image in without}
        for with_drf, without in (
            (radii(drf.deep), radii(baseline.deep)),
            (radii(drf.wide), radii(baseline.wide)),
        )
    )
    difference, error = estimate(deep, wide)
    return {
        "sigma": drf.sigma,
        "method": drf.recipe,
        "baseline": baseline.recipe,
        "seed": drf.seed,
        "images": len(deep),
        "difference": difference,
        "error": error,
        "paper": drf.printed.acr - baseline.printed.acr,
    }


def report(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """Of the networks of Table 1 whose logs are both whole: a row each, and the pairs with DRF."""
    networks = []
    for path in (runs / "n100000").glob("*.tsv"):
        if not (finished(path) and finished(runs / "n1000" / path.name)):
            continue
        deep, wide = read_log(path), read_log(runs / "n1000" / path.name)
        recipe, _, seed = path.stem.split("-", 1)[1].rpartition("-")
        network = Network((deep.config or {})["sigma"], recipe, int(seed), deep, wide)
        if network.printed is None:
            print(f"{path.stem}: left out, not in the paper's Table 1", file=sys.stderr)
        else:
            networks.append(network)
    networks.sort(key=lambda network: network.order)
    named = {(n.sigma, n.recipe, n.seed): n for n in networks}
    pairs = [
        pair(network, named[baseline])
        for (sigma, recipe, seed), network in named.items()
        if "-drf" in recipe and (baseline := (sigma, recipe.replace("-drf", ""), seed)) in named
    ]
    return {"rows": [row(network) for network in networks], "pairs": pairs}


def finished(log: Path) -> bool:
    """Whether every image that the log is meant for is in it: a line each, below the header."""
    settings = log.with_suffix(".json")
    if not (log.exists() and settings.exists()):
        return False
    return log.read_bytes().count(b"\n") == json.loads(settings.read_text())["indices_total"] + 1


def commands(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What to type for those rows, or for all if there are none.

    A command for each SKIP, sigma and seed; sigma 1 and seed 0, the defaults, are not named.
    """
    of: dict[str, list[str]] = {}
    for row in rows:
        settings = f"SKIP={row['of_all']['images'] // row['of_the_part']['images']}"
        if row["sigma"] != 1.0:
            settings += f" SIGMA={row['sigma']:g}"
        if row["seed"] != 0:
            settings += f" SEED={row['seed']}"
        of.setdefault(settings, []).append(row["method"])
    words = "docs/results/full.sh MNIST_FOLDER RUN_FOLDER"
    runs = [f'METHODS="{" ".join(methods)}" {which} {words}' for which, methods in of.items()]
    return [*(runs or [words]), "python docs/results/full.py RUN_FOLDER > docs/results/full.json"]


if __name__ == "__main__":
    json.dump(report(Path(sys.argv[1])), sys.stdout, indent=1)
    print()
