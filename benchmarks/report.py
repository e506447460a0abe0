"""Turn the JSON of pytest-benchmark into the table of docs/benchmarks.md, and plot its ratios.

    pytest benchmarks/ --benchmark-only --benchmark-json=run.json
    python benchmarks/report.py run.json --plot docs/benchmarks.png --save docs/benchmarks.json

A ratio compares medians of one group in one run with its first provider (eager or scipy); wins and
losses are printed alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BASELINES = ("eager", "scipy")


def groups(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Median seconds and what was recorded, by group and provider."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for benchmark in json.loads(path.read_text())["benchmarks"]:
        info = benchmark["extra_info"]
        entry = {**info, "seconds": benchmark["stats"]["median"]}
        result.setdefault(benchmark["group"], {})[info["provider"]] = entry
    return result


def ratio(providers: dict[str, dict[str, Any]], provider: str) -> float | None:
    """The speed-up over the baseline of its group; None if that was not run (pytest -k)."""
    for name, entry in providers.items():
        if name.startswith(BASELINES):
            return entry["seconds"] / providers[provider]["seconds"]
    return None


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| operation | provider | median | times the baseline | GB/s | of a copy's bandwidth |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for group, providers in found.items():
        for provider, entry in providers.items():
            times = ratio(providers, provider)
            shown = "–" if times is None else f"{times:.2f}"
            lines.append(
                f"| {group} | {provider} | {1e6 * entry['seconds']:,.0f} µs | "
                f"{shown} | {entry['gigabytes_per_second']:.1f} | "
                f"{100 * entry['share_of_copy']:.0f} % |"
            )
    any_entry = next(iter(next(iter(found.values())).values()))
    names = ("threads", "isa", "torch", "drf_fast", "python")
    lines += ["", ", ".join(f"{name} {any_entry[name]}" for name in names)]
    return "\n".join(lines)


def plot(found: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [
        (f"{group}: {provider}", times, provider)
        for group, providers in found.items()
        for provider in providers
        if not provider.startswith(BASELINES)
        if (times := ratio(providers, provider)) is not None
    ]
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(rows) + 1))
    colors = ["#0072b2" if name.startswith("drf_fast") else "#999999" for _, _, name in rows]
    axes.barh([row[0] for row in rows], [row[1] for row in rows], color=colors)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the published formulation (eager) or SciPy, same run")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--save", type=Path, help="JSON of the table's figures")
    arguments = parser.parse_args()
    found = groups(arguments.json)
    print(table(found))
    if arguments.plot:
        plot(found, arguments.plot)
    if arguments.save:
        arguments.save.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
