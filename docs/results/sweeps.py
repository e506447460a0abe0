"""What lambda0, zeta and kappa do: Fig. 3 of the paper, for the default form and for another.

    docs/results/reading.sh MNIST_FOLDER RUN_FOLDER baseline prox-image{,-rate,-kappa}
    python docs/results/sweeps.py RUN_FOLDER > docs/results/sweeps.json
    python docs/results/sweeps.py draw docs/results/sweeps.png

The other form, from readings.json, is excess with lambda changed once an epoch: there lambda0
lasts. The band of the figure is what SmoothAdv alone gives over the seeds of frontier.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The parts of reading.sh: what the part varies, its option, and its symbol.
SWEPT = {"lambda0": ("", "lambda0", "λ₀"), "rate": ("-rate", "lambda-lr", "ζ"),
         "kappa": ("-kappa", "kappa", "κ")}  # fmt: skip
FORMS = {"default": "`prox`, every step (the default)", "epoch": "`excess`, once an epoch"}


def settings(folder: Path, option: str) -> dict[str, dict[str, float]]:
    """Of each value of ``option`` what was measured: means over seeds."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = ("acr", "r0.00", "r1.00", "r2.00", "distance", "lambda")
    return {
        str(setting["values"][option]): {key: setting["mean"][key] for key in kept}
        for setting in summary["settings"]
    }


def report(runs: Path) -> dict[str, Any]:
    """The sweeps of the default form in ``runs``, and SmoothAdv beside them."""
    found = {
        part: settings(runs / f"prox-image{suffix}", option)
        for part, (suffix, option, _) in SWEPT.items()
    }
    return {"baseline": settings(runs / "baseline", "grad-norm")["image"], **found}


def both(folder: Path = HERE) -> dict[str, Any]:
    """The sweeps of each of ``FORMS``, from the JSON in ``folder``."""
    readings = json.loads((folder / "readings.json").read_text(encoding="utf-8"))["readings"]
    swept = json.loads((folder / "sweeps.json").read_text(encoding="utf-8"))
    return {"default": swept, "epoch": readings["excess-image-epoch"]}


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A row for each of ``FORMS`` and each of ``SWEPT``: values, ACR, accuracy, mean distance."""
    styles = (("acr", ".3f"), ("r0.00", ".1f"), ("r2.00", ".1f"), ("distance", ".2f"))
    return [
        [
            f"{symbol}, {name}", " / ".join(f"{float(value):g}" for value in found[form][part]),
            *(" / ".join(f"{each[key]:{style}}" for each in found[form][part].values())
              for key, style in styles),
        ]
        for form, name in FORMS.items()
        for part, (_, _, symbol) in SWEPT.items()
        if part in found[form]
    ]  # fmt: skip


def draw(found: dict[str, Any], seeds: list[float], path: Path) -> None:
    """ACR against each of ``SWEPT``; ``seeds`` are SmoothAdv's ACRs, of one seed each."""
    from drf_fast.report import style

    figure, panels = style.panels(len(SWEPT), 3.2, 3.0, sharex=False)
    for axes, (part, (_, _, symbol)) in zip(panels, SWEPT.items(), strict=True):
        band = f"SmoothAdv, {len(seeds)} seeds"
        axes.axhspan(min(seeds), max(seeds), color="0.5", alpha=0.2, lw=0, label=band)
        for number, (form, name) in enumerate(FORMS.items()):
            if part not in found[form]:
                continue
            values = [float(value) for value in found[form][part]]
            acr = [each["acr"] for each in found[form][part].values()]
            label = name.replace("`", "")
            axes.plot(values, acr, "o-", color=style.colour(number), markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(symbol)
    panels[0].set_ylabel("average certified radius")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    style.save(figure, path)


if __name__ == "__main__":
    if sys.argv[1] == "draw":
        points = json.loads((HERE / "frontier.json").read_text(encoding="utf-8"))["points"]
        alone = [point["acr"] for point in points["baseline"] if point["epsilon"] == 1]
        draw(both(), alone, Path(sys.argv[2]))
    else:
        json.dump(report(Path(sys.argv[1])), sys.stdout, indent=1)
        print()
