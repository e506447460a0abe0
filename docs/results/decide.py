"""Which reading of DRF is the default, by the rule of docs/results.md, from the logs of decide.sh.

    python docs/results/decide.py RUN_FOLDER > docs/results/decide.json

With v(sigma, s, i) the certified radius of image i under the network of training seed s (0 where
it is wrong), a form's gain is the mean of v_form - v_SmoothAdv over images and over the pairs
(sigma, seed) whose three networks (SmoothAdv, prox, shrink) are finished. They start from the same
weights and see the same batches and noise, so they are paired by seed as well as by image. The
interval is the 2.5th to the 97.5th percentile over resamples of N images, the same for all
networks, and, of each sigma, of S - 1 of its S seeds (as ``drf_fast.report.compare``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.certification.log import read_log

SEEDS = {"1.0": (0, 1, 2, 3, 4), "0.5": (0, 1, 2)}
BASELINE, EXACT, OTHER = "baseline", "prox", "shrink"
FORMS = (EXACT, OTHER, "udr")
RADII = (0.0, 1.0, 2.0)
TIE = 0.002
RESAMPLES, CHUNK = 10_000, 500


def known(runs: Path) -> dict[str, np.ndarray]:
    """(N,) certified radii, 0 where the class is wrong, of each pair with its three networks."""
    found = {}
    for sigma, seed in pairs():
        names = [f"{sigma}-{kind}-{seed}" for kind in (BASELINE, *FORMS)]
        logs = {name: runs / f"{name}.tsv" for name in names if finished(runs / f"{name}.tsv")}
        if not logs.keys() >= set(names[:3]):
            continue  # gains over different seeds could not be compared
        for name, path in logs.items():
            log = read_log(path)
            found[name] = np.where(log.correct, log.radius, 0.0)[np.argsort(log.idx)]
    return found


def pairs() -> list[tuple[str, int]]:
    """All pairs of sigma and seed of the rule."""
    return [(sigma, seed) for sigma, seeds in SEEDS.items() for seed in seeds]


def finished(log: Path) -> bool:
    """Whether every image that the log is meant for is in it: a line each, below the header."""
    settings = log.with_suffix(".json")
    if not (log.exists() and settings.exists()):
        return False
    return log.read_bytes().count(b"\n") == json.loads(settings.read_text())["indices_total"] + 1


def paired(
    found: dict[str, np.ndarray], sigma: str, form: str, minus: str = BASELINE
) -> dict[int, np.ndarray]:
    """(N,) differences of the radii, of each seed of which both networks are known."""
    names = {seed: [f"{sigma}-{kind}-{seed}" for kind in (form, minus)] for seed in SEEDS[sigma]}
    return {
        seed: found[both[0]] - found[both[1]]
        for seed, both in names.items()
        if all(name in found for name in both)
    }


def gain(differences: dict[str, np.ndarray]) -> list[float]:
    """Mean, lower and upper 95 % bound of the differences (S, N) of each sigma, pair by pair."""
    share = {sigma: len(of) for sigma, of in differences.items() if len(of)}
    total = sum(share.values())
    middle = sum(of.mean() * len(of) for of in differences.values() if len(of)) / total
    generator = np.random.default_rng(0)
    replicates = []
    images = next(iter(differences.values())).shape[1]
    for _ in range(RESAMPLES // CHUNK):
        drawn = generator.integers(images, size=(CHUNK, images))
        drawn += images * np.arange(CHUNK)[:, None]
        times = np.bincount(drawn.ravel(), minlength=CHUNK * images).reshape(CHUNK, images)
        result = np.zeros(CHUNK)
        for sigma, seeds in share.items():
            draws = max(1, seeds - 1)
            chosen = generator.multinomial(draws, np.full(seeds, 1 / seeds), size=CHUNK) / draws
            means = times @ differences[sigma].T / images
            result += (chosen * means).sum(1) * seeds / total
        replicates.append(result)
    return [float(middle), *np.quantile(np.concatenate(replicates), [0.025, 0.975]).tolist()]


def over_all(found: dict[str, np.ndarray], form: str, minus: str = BASELINE) -> list[float] | None:
    """The gain of one kind over another, over all pairs of sigma and seed that there are."""
    seeds = {sigma: list(paired(found, sigma, form, minus).values()) for sigma in SEEDS}
    present = {sigma: np.array(of) for sigma, of in seeds.items() if of}
    return gain(present) if present else None


def network(runs: Path, name: str) -> dict[str, float | None]:
    """What one network certifies, and the distance it was trained at.

    ``from_epsilon`` is the largest relative difference of an epoch's mean distance from epsilon
    after the first epoch: clause (b) of the rule.
    """
    log = read_log(runs / f"{name}.tsv")
    right = log.correct & (log.radius >= np.asarray(RADII)[:, None])
    epochs = [json.loads(line) for line in (runs / name / "metrics.jsonl").open()]
    off = [abs(epoch["distance"] / epoch["epsilon"] - 1) for epoch in epochs[1:]]
    return {
        "acr": float(np.where(log.correct, log.radius, 0.0).mean()),
        **dict(
            zip((f"r{radius:g}" for radius in RADII), (100 * right.mean(1)).tolist(), strict=True)
        ),
        "distance": epochs[-1]["distance"],
        "from_epsilon": max(off, default=None),
        "lambda": epochs[-1].get("lambda"),
    }


def verdict(prox: float, shrink: float) -> str:
    """The form that wins by the rule: the higher gain, and within TIE the exact step."""
    return OTHER if shrink - prox >= TIE else EXACT


def report(runs: Path) -> dict[str, Any]:
    """All that docs/results.md says of these runs."""
    found = known(runs)
    seeds = {sigma: sorted(paired(found, sigma, EXACT)) for sigma in SEEDS}
    complete = all(seeds[sigma] == list(all_seeds) for sigma, all_seeds in SEEDS.items())
    exact, other = (over_all(found, form) for form in (EXACT, OTHER))
    winner = verdict(exact[0], other[0]) if complete and exact and other else None
    settings = [json.loads((runs / f"{name}.json").read_text()) for name in found]
    return {
        "networks": {name: network(runs, name) for name in found},
        "precision": sorted({each["training"]["precision"] for each in settings}),
        "seeds": seeds,
        "gain": {EXACT: exact, OTHER: other},
        "gain_by_sigma": {
            sigma: {
                form: gain({sigma: np.array(list(of.values()))})
                for form in FORMS
                if (of := paired(found, sigma, form))
            }
            for sigma in SEEDS
        },
        "shrink_minus_prox": over_all(found, OTHER, EXACT),
        "complete": complete,
        "winner": winner,
    }


def main(runs: Path) -> None:
    found = report(runs)
    for form, values in found["gain"].items():
        if values:
            print(f"{form}: {values[0]:+.4f} [{values[1]:+.4f}, {values[2]:+.4f}]", file=sys.stderr)
    print(f"winner: {found['winner'] or 'not decided, runs are missing'}", file=sys.stderr)
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
