"""ACR against the mean distance of training: is DRF above SmoothAdv's curve, or on it?

    python docs/results/frontier.py RUN_FOLDER frontier.png > frontier.json

from the runs of frontier.sh and decide.sh. A point of DRF lies above the curve by its value minus
SmoothAdv's at the same mean distance and seed, interpolated between the two nearest points of that
seed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

METHODS = {"baseline": "SmoothAdv", "prox": "SmoothAdv + DRF"}  # as decide.sh names them
SEEDS = (0, 1, 2)
VALUES = {
    "acr": "average certified radius",
    "r0": "accuracy at r = 0 (%)",
    "r1": "accuracy at r = 1 (%)",
    "r2": "accuracy at r = 2 (%)",
}


def decide() -> Any:
    """The program beside this one, which reads the same runs."""
    path = Path(__file__).with_name("decide.py")
    spec = importlib.util.spec_from_file_location("results_decide", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each method its finished runs: epsilon, seed, distance, what they certify.

    A seed counts only with as many epsilons as any, of both methods, so that means over seeds can
    be compared.
    """
    reader, found = decide(), {}
    for path in runs.glob("1.0-*.tsv"):
        _, method, seed, *epsilon = path.stem.split("-")
        if method in METHODS and int(seed) in SEEDS and reader.finished(path):
            settings = json.loads(path.with_suffix(".json").read_text())
            run = {
                "seed": int(seed),
                "epsilon": float(*epsilon or (1,)),
                "precision": settings["training"]["precision"],
            }
            place = method, run["seed"], run["epsilon"]
            found[place] = {**run, **reader.network(runs, path.stem)}
    epsilons = {
        seed: {e for name, s, e in found if s == seed and all((m, s, e) in found for m in METHODS)}
        for seed in SEEDS
    }
    most = max(map(len, epsilons.values()))
    return {
        name: [
            found[name, seed, epsilon]
            for seed, of in epsilons.items()
            for epsilon in sorted(of)
            if len(of) == most
        ]
        for name in METHODS
    }


def curve(of: list[dict[str, Any]], value: str) -> np.ndarray:
    """(E, 4): of each epsilon the mean distance, and mean, least and greatest value of seeds."""
    rows = []
    for epsilon in sorted({point["epsilon"] for point in of}):
        here = [point for point in of if point["epsilon"] == epsilon]
        values = [point[value] for point in here]
        distance = np.mean([point["distance"] for point in here])
        rows.append((distance, np.mean(values), min(values), max(values)))
    return np.array(rows)


def above(found: dict[str, list[dict[str, Any]]], value: str) -> list[dict[str, Any]]:
    """How far DRF lies above SmoothAdv's curve: of each epsilon the mean over seeds and its error.

    The error is the standard error over seeds, None of one seed. Points beyond the ends of the
    curve are left out.
    """
    result = []
    for epsilon in sorted({point["epsilon"] for point in found["prox"]}):
        gains = []
        for point in found["prox"]:
            if point["epsilon"] != epsilon:
                continue
            base = sorted(
                (other["distance"], other[value])
                for other in found["baseline"]
                if other["seed"] == point["seed"]
            )
            # A hundredth beyond an end is the end: the mean distance of one epsilon wavers so much.
            if not base or not 0.99 * base[0][0] <= point["distance"] <= 1.01 * base[-1][0]:
                continue
            distances, values = zip(*base, strict=True)
            gains.append(point[value] - float(np.interp(point["distance"], distances, values)))
        if gains:
            spread = float(np.std(gains, ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
            result.append(
                {
                    "epsilon": epsilon,
                    "seeds": len(gains),
                    "gain": float(np.mean(gains)),
                    "error": spread,
                }
            )
    return result


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Both curves of each value, with the band of the seeds."""
    from drf_fast.report import style

    figure, panels = style.panels(4, 4.3, 3.2, columns=2, sharey=False)
    for axes, (value, text) in zip(panels, VALUES.items(), strict=True):
        for number, (name, label) in enumerate(METHODS.items()):
            rows = curve(found[name], value)
            colour = style.colour(number)
            axes.fill_between(rows[:, 0], rows[:, 2], rows[:, 3], color=colour, alpha=0.2, lw=0)
            axes.plot(rows[:, 0], rows[:, 1], "o-", color=colour, markersize=3, label=label)
        axes.set_ylabel(text)
    for axes in panels[2:]:  # the upper ones share their axis
        axes.set_xlabel("mean distance of training")
    panels[0].legend(frameon=False)
    style.save(figure, path)


def report(runs: Path) -> dict[str, Any]:
    """All that docs/results.md says of these runs."""
    found = points(runs)
    return {
        "precision": sorted({point["precision"] for of in found.values() for point in of}),
        "points": found,
        "above": {value: above(found, value) for value in VALUES},
    }


if __name__ == "__main__":
    result = report(Path(sys.argv[1]))
    draw(result["points"], Path(sys.argv[2]))
    json.dump(result, sys.stdout, indent=1)
    print()
