"""What the readings of DRF show of the paper's claims; docs/results.md has the claims.

    docs/results/reading.sh MNIST_FOLDER RUN_FOLDER baseline prox-image ...
    docs/results/reading.sh MNIST_FOLDER RUN_FOLDER report
    python docs/results/claims.py RUN_FOLDER > docs/results/readings.json

prints the table on stderr and what it was made of as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FLAT = 0.015  # of mean ACR, the spread of one setting over seeds
CLEAN, FAR = "0.00", "2.00"
SWEPT = {"rate": ("lambda-lr", (0.001, 0.005, 0.02)), "kappa": ("kappa", (100, 300, 1000))}


def difference(path: Path) -> dict[str, list[float]]:
    """Difference, lower and upper 95 % bound, of ACR and of certified accuracy at two radii."""
    report = json.loads(path.read_text())
    found = report["groups"][1]["comparison"]
    places = {f"{radius:.2f}": place for place, radius in enumerate(report["radii"])}
    sides = [found[side] for side in ("difference", "lower", "upper")]
    result = {"acr": [side["acr"] for side in sides]}
    for radius in (CLEAN, FAR):
        result[radius] = [side["certified_accuracy"][places[radius]] for side in sides]
    return result


def settings(folder: Path, name: str) -> dict[float, dict[str, float]]:
    """Means over seeds of each value of ``name``."""
    summary = json.loads((folder / "summary.json").read_text())
    kept = ("acr", "r0.00", "r1.00", "r2.00", "distance", "lambda")
    return {
        setting["values"][name]: {key: setting["mean"][key] for key in kept}
        for setting in summary["settings"]
    }


def reading(runs: Path, name: str) -> dict[str, Any]:
    against, trade = (difference(runs / f"claim{i}-{name}.json") for i in (1, 2))
    clean, far = trade[CLEAN], trade[FAR]
    claims: dict[str, bool | None] = {
        "1": against["acr"][2] >= 0,
        "2": clean[1] * clean[2] > 0 and far[1] * far[2] > 0 and clean[0] * far[0] < 0,
    }
    found: dict[str, Any] = {
        "lambda0": settings(runs / name, "lambda0"),
        "minus the baseline, lambda0 = 1": against,
        "lambda0 = 2 minus 0.5": trade,
    }
    for claim, (part, (option, values)) in zip("34", SWEPT.items(), strict=True):
        folder = runs / f"{name}-{part}"
        claims[claim] = None
        if (folder / "summary.json").exists():
            found[part] = settings(folder, option)
            acr = [found[part][value]["acr"] for value in values]
            claims[claim] = max(acr) - min(acr) <= FLAT
    return {**found, "claims": claims}


def line(name: str, found: dict[str, Any]) -> str:
    def interval(values: list[float], digits: int) -> str:
        middle, low, high = (f"{value:+.{digits}f}" for value in values)
        return f"{middle} [{low}, {high}]"

    acr = " / ".join(f"{setting['acr']:.3f}" for setting in found["lambda0"].values())
    distance = " / ".join(f"{setting['distance']:.2f}" for setting in found["lambda0"].values())
    trade = found["lambda0 = 2 minus 0.5"]
    shown = {True: "yes", False: "no", None: "-"}
    cells = [
        name, acr, distance, interval(found["minus the baseline, lambda0 = 1"]["acr"], 3),
        interval(trade[CLEAN], 1), interval(trade[FAR], 1),
        *(shown[claim] for claim in found["claims"].values()),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(readings: dict[str, Any]) -> str:
    """All readings, in markdown."""
    head = (
        "| reading | ACR at λ₀ = 0.5 / 1 / 2 | mean distance | ACR − baseline at λ₀ = 1 | "
        f"r = {CLEAN}: λ₀ = 2 − 0.5 | r = {FAR}: λ₀ = 2 − 0.5 | 1 | 2 | 3 | 4 |\n"
        f"|---|---|---|---|---|---|{'---|' * 4}"
    )
    return "\n".join([head, *(line(*item) for item in readings.items())])


def main(runs: Path) -> None:
    names = sorted(path.name.removeprefix("claim2-")[:-5] for path in runs.glob("claim2-*.json"))
    found = {name: reading(runs, name) for name in names}
    baseline = settings(runs / "baseline", "grad-norm")
    print(table(found), file=sys.stderr)
    json.dump({"baseline": baseline, "readings": found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
