"""ACR against the mean distance of training: is DRF above SmoothAdv's curve, or on it?

    python docs/results/frontier.py RUN_FOLDER frontier.png > frontier.json

from the runs of frontier.sh and decide.sh. A point of DRF lies above the curve by its value minus
SmoothAdv's at the same mean distance and seed, interpolated between the two nearest points of that
seed.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

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


def verdict(found: dict[str, Any]) -> str:
    """A ``report`` in words: is DRF above the curve, and how high does each method come?"""
    return f"{_where(found['points'], found['above']['acr'])} {_highest(found['points'])}"


def _where(found: dict[str, list[dict[str, Any]]], points: list[dict[str, Any]]) -> str:
    """Says whether DRF lies above SmoothAdv's curve, and how often by more than chance."""
    higher = sum(point["gain"] > 0 for point in points)
    if any(point["error"] is None for point in points):
        return (
            f"DRF lies above SmoothAdv's curve at {higher} of {len(points)} ε; with one seed no "
            "error is known, and this decides nothing yet."
        )
    beyond = [_beyond_chance(point) for point in points]
    return (
        f"DRF lies above SmoothAdv's curve at {higher} of {len(points)} ε, at {beyond.count(1)} of "
        "them by more than chance over these seeds (95 %, Student's t), and below it by as much at "
        f"{beyond.count(-1)}.{_paired(found)}"
    )


def _beyond_chance(point: dict[str, Any]) -> int:
    """1 or -1 if the gain over seeds has 0 outside of its 95 % interval by Student's t, else 0."""
    half = stats.t.ppf(0.975, point["seeds"] - 1) * point["error"]
    return int(point["gain"] > half) - int(point["gain"] < -half)


def _paired(found: dict[str, list[dict[str, Any]]]) -> str:
    """Says of how many pairs of the same epsilon and seed DRF has the higher ACR."""
    base, drf = (
        {(point["epsilon"], point["seed"]): point["acr"] for point in found[method]}
        for method in ("baseline", "prox")
    )
    pairs = base.keys() & drf.keys()
    higher = sum(drf[pair] > base[pair] for pair in pairs)
    return f" Of {len(pairs)} pairs of the same ε and seed, its ACR is higher in {higher}."


def _highest(found: dict[str, list[dict[str, Any]]]) -> str:
    """Says how high the ACR can be made by epsilon alone, with each method."""
    best = {}
    for method, of in found.items():
        means = []
        for epsilon in {point["epsilon"] for point in of}:
            acr = [point["acr"] for point in of if point["epsilon"] == epsilon]
            means.append((sum(acr) / len(acr), epsilon))
        best[method] = max(means)
    (drf, at), (base, there) = best["prox"], best["baseline"]
    said = (
        f"The highest mean ACR is {drf:.4f} at ε = {at:g} with DRF and {base:.4f} at ε = {there:g} "
        "without"
    )
    gains = _gains(found, at, there)
    if len(gains) > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        point = {"gain": statistics.mean(gains), "error": error, "seeds": len(gains)}
        said += f", a difference {'beyond' if _beyond_chance(point) else 'within'} chance"
    return f"{said}."


def _gains(found: dict[str, list[dict[str, Any]]], at: float, there: float) -> list[float]:
    """The ACR of DRF at epsilon ``at`` minus SmoothAdv's at ``there``, for each seed of both."""
    drf, base = (
        {point["seed"]: point["acr"] for point in found[method] if point["epsilon"] == epsilon}
        for method, epsilon in (("prox", at), ("baseline", there))
    )
    return [drf[seed] - base[seed] for seed in sorted(drf.keys() & base.keys())]


if __name__ == "__main__":
    result = report(Path(sys.argv[1]))
    draw(result["points"], Path(sys.argv[2]))
    json.dump(result, sys.stdout, indent=1)
    print()
