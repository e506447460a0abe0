"""Fills the tables of docs/results.md, and one of README, from the JSON beside this file.

    python docs/results/page.py

What lies between <!-- NAME --> and <!-- /NAME --> comes from the function of that name; a test
compares the page with what this writes. A sentence stands for results that do not exist yet.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, README = HERE.parent / "results.md", HERE.parents[1] / "README.md"
# The order of the paper's table.
METHODS = (
    "gaussian", "stability", "macer", "smoothmix", "smoothadv", "smoothadv+drf", "consistency",
    "consistency+drf",
)  # fmt: skip
# What full.sh runs at sigma = 1 unless told otherwise, and their names in README.
PROTOCOL = {
    "gaussian": "Gaussian training",
    "stability": "Stability",
    "macer": "MACER",
    "smoothmix": "SmoothMix",
    "smoothadv": "SmoothAdv",
    "smoothadv-drf": "SmoothAdv + DRF",
    "consistency": "Consistency",
    "consistency-drf": "Consistency + DRF",
}
PUBLISHED = "-published"  # after a recipe that is read as published code reads it
CATRS = ("catrs", "catrs+drf")  # not in the paper's table


def read(name: str, folder: Path = HERE) -> Any:
    """The content of NAME.json; None if there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def script(name: str) -> Any:
    """Another program of this folder, as a module."""
    spec = importlib.util.spec_from_file_location(f"results_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table: ``text_columns`` columns on the left, then numbers, aligned right."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join(lines)


def interval(values: Sequence[float], digits: int = 4) -> str:
    middle, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def full() -> str:
    found = read("full") or {"rows": [], "pairs": []}
    ran = {row["method"] for row in found["rows"] if row["sigma"] == 1.0}
    missing = [
        method + " by the paper's text" * (f"{method}{PUBLISHED}" in ran)
        for method in PROTOCOL
        if method not in ran
    ]
    left = f"Not yet run at σ = 1: {', '.join(missing)}. " * bool(missing)
    cost = (
        "With an adversary, a row takes two and a half hours of two cores that have bf16 "
        "arithmetic, and about a day of one core without."
    )
    said = textwrap.fill(left + cost, 100, break_on_hyphens=False)
    commands = "\n".join(f"    {line}" for line in script("full").commands(found["rows"]))
    if not found["rows"]:
        return f"{said}\n\n{commands}"
    rows = [
        [
            row["method"],
            f"{row['sigma']:g}",
            str(row["seed"]),
            row["precision"],
            f"{row['acr']:.3f}",
            f"{row['paper']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['error']:.3f}",
            f"{row['of_the_part']['images']:,}",
        ]
        for row in found["rows"]
    ]
    head = (
        "method", "σ", "seed", "arithmetic", "ACR", "paper", "difference", "standard error",
        "images at n = 100,000",
    )  # fmt: skip
    pairs = [
        [
            f"{pair['method']} − {pair['baseline']}", f"{pair['sigma']:g}", str(pair["seed"]),
            f"{pair['difference']:+.3f}", f"{pair['error']:.3f}", f"{pair['paper']:+.3f}",
            f"{pair['images']:,}",
        ]
        for pair in found["pairs"]
    ]  # fmt: skip
    of_pairs = (
        "DRF − baseline", "σ", "seed", "ACR", "standard error", "paper", "images at n = 100,000",
    )  # fmt: skip
    return "\n\n".join(
        [
            table(head, rows, 4),
            *([table(of_pairs, pairs, 3)] if pairs else []),
            said,
            commands,
        ]
    )


def rows() -> str:
    """Of each method of ``full`` the ACR of seed 0 beside the printed one, as README shows it."""
    cells = []
    for row in (row for row in read("full")["rows"] if row["seed"] == 0):
        recipe = row["method"].removesuffix(PUBLISHED)
        by = "published code" if recipe != row["method"] else "the paper's text"
        acr = f"{row['acr']:.3f} ± {row['error']:.3f}"
        cells.append([PROTOCOL[recipe], f"{row['sigma']:g}", by, acr, f"{row['paper']:.3f}"])
    return table(("method", "σ", "optimiser as in", "ACR", "printed"), cells, 3)


def decide() -> str:
    found = read("decide")
    if not found or not found["networks"]:
        return (
            "Not yet run; the command is `docs/results/decide.sh MNIST_FOLDER RUN_FOLDER`, then\n"
            "`python docs/results/decide.py RUN_FOLDER > docs/results/decide.json`."
        )
    networks, rows = found["networks"], []
    for sigma, forms in found["gain_by_sigma"].items():
        for form, gain in {"baseline": None, **forms}.items():
            names = [f"{sigma}-{form}-{seed}" for seed in found["seeds"][sigma]]
            here = [networks[name] for name in names if name in networks]
            if not here:
                continue
            mean = {key: sum(each[key] for each in here) / len(here) for key in
                    ("acr", "r0", "r1", "r2", "distance")}  # fmt: skip
            rows.append(
                [
                    "SmoothAdv" if form == "baseline" else f"`{form}`", sigma, str(len(here)),
                    f"{mean['acr']:.4f}", "" if gain is None else interval(gain),
                    *(f"{mean[key]:.1f}" for key in ("r0", "r1", "r2")), f"{mean['distance']:.3f}",
                ]
            )  # fmt: skip
    head = ("", "σ", "seeds", "ACR", "ACR − SmoothAdv", "r = 0", "r = 1", "r = 2", "distance")
    gains = {form: interval(values) for form, values in found["gain"].items()}
    between = interval(found["shrink_minus_prox"])
    so_far = "" if found["complete"] else "Some runs are missing. So far: "
    counts = {sigma: len(seeds) for sigma, seeds in found["seeds"].items() if seeds}
    seeds = " and ".join(f"{n} seed{'s' * (n > 1)} at σ = {sigma}" for sigma, n in counts.items())
    off = max(network["from_epsilon"] for name, network in networks.items() if _decides(name))
    if found["complete"]:
        tie = abs(found["shrink_minus_prox"][0]) < 0.002
        verdict = f"By the rule{', as this is a tie,' * tie} `{found['winner']}` is the default."
    else:
        verdict = "This decides nothing yet; until all runs are there, `prox` is the default."
    text = (
        f"{so_far}{seeds}, {', '.join(found['precision'])}. The 95 % intervals are over images and "
        "seeds; with few seeds they are too narrow, and with one they are over images alone "
        f"([decide.json](results/decide.json)). Over all pairs of σ and seed, the gain in ACR is "
        f"{gains['prox']} with `prox` and {gains['shrink']} with `shrink`; the difference is "
        f"{between}. {verdict} (b) holds: after the first epoch no mean distance of `prox` or "
        f"`shrink` is more than {100 * off:.1f} % from ε."
    )
    return f"{textwrap.fill(text, 100)}\n\n{table(head, rows)}"


def _decides(name: str) -> bool:
    """Whether a network of decide.py is of one of the two forms that the rule compares."""
    return any(f"-{form}-" in name for form in ("prox", "shrink"))


def frontier() -> str:
    found = read("frontier")
    if not found:
        return (
            "Not yet run; the command is `docs/results/frontier.sh MNIST_FOLDER RUN_FOLDER`, then\n"
            "`python docs/results/frontier.py RUN_FOLDER docs/results/frontier.png > "
            "docs/results/frontier.json`."
        )
    picture = "![ACR against mean distance](results/frontier.png)"
    points = found["above"]["acr"]
    if not points:
        return f"{picture}\n\nNo point of DRF lies within the ends of SmoothAdv's curve yet."
    rows = [
        [
            f"{point['epsilon']:g}", str(point["seeds"]), f"{point['gain']:+.4f}",
            "" if point["error"] is None else f"{point['error']:.4f}",
        ]
        for point in points
    ]  # fmt: skip
    text = table(("ε of DRF", "seeds", "ACR above the curve", "standard error over seeds"), rows)
    runs = found["points"]["prox"]
    counts = [len({run[key] for run in runs}) for key in ("epsilon", "seed")]
    so_far = "" if counts == [6, 3] else "Some runs are missing; so far {} of 6 ε, {} of 3 seeds. "
    arithmetic = f" The arithmetic is {', '.join(found['precision'])}."
    said = f"{so_far.format(*counts)}{script('frontier').verdict(found)}{arithmetic}"
    said = textwrap.fill(said, 100)
    return f"{picture}\n\n{said}\n\n{text}"


def table1(sigma: float) -> str:
    found, catrs = read("n1000"), read("n1000-catrs")
    radii = [radius for radius in found["radii"] if radius <= 2.46 * sigma]
    radii = radii[:: 2 if sigma == 1.0 else 1]
    rows = [_row(_of(found, method, sigma), found["radii"], radii) for method in METHODS]
    if catrs:
        rows += [
            _row(group, catrs["radii"], radii)
            for group in (_of(catrs, method, sigma) for method in CATRS)
            if group is not None
        ]
    return table(("method", "seeds", "ACR", *(f"{radius:.2f}" for radius in radii)), rows)


def _of(found: dict[str, Any], method: str, sigma: float) -> Any:
    """The group of a method at sigma in a report; None if there is none."""
    groups = found["groups"]
    return next((g for g in groups if (g["method"], g["sigma"]) == (method, sigma)), None)


def _row(group: dict[str, Any], known: Sequence[float], radii: Sequence[float]) -> list[str]:
    spread = "" if group["acr_std"] is None else f" ± {group['acr_std']:.3f}"
    shares = [f"{group['certified_accuracy'][known.index(radius)]:.1f}" for radius in radii]
    return [group["method"], str(group["seeds"]), f"{group['acr']:.3f}{spread}", *shares]


def catrs() -> str:
    found = read("catrs-default")
    if not found:
        return (
            "Not yet run; the command is `docs/results/catrs.sh RUN_FOLDER`, which writes\n"
            "`RUN_FOLDER/catrs-default.json`."
        )
    radii = [radius for radius in found["radii"] if radius <= 1]
    rows, changes = [], []
    for group in found["groups"]:
        change = ""
        if group["comparison"]:
            sides = ("difference", "lower", "upper")
            changes.append([group["comparison"][side]["acr"] for side in sides])
            change = interval(changes[-1])
        method, _, acr, *shares = _row(group, found["radii"], radii)
        rows.append([method, acr, change, *shares])
    head = ("method", "ACR", "ACR − catrs", *(f"{radius:.2f}" for radius in radii))
    chance = all(low <= 0 <= high for _, low, high in changes)
    said = " All intervals of the differences contain 0." if chance else ""
    return f"{found['images']} test images, σ = 0.5.{said}\n\n{table(head, rows)}"


def pairs() -> str:
    rows = []
    for sigma in ("1.0", "0.5"):
        for base in ("smoothadv", "consistency"):
            rows.append([base, sigma, *_difference(f"n1000-{sigma}-{base}", (0.0, 1.0, 2.0))])
    return table(("DRF − baseline", "σ", "seeds", "ACR", "r = 0", "r = 1", "r = 2"), rows)


def _difference(name: str, radii: Sequence[float]) -> list[str]:
    """Cells: seeds, difference in ACR, and in certified accuracy at those radii in the report."""
    found = read(name)
    group = found["groups"][1]
    sides = [group["comparison"][side] for side in ("difference", "lower", "upper")]
    cells = [str(group["seeds"]), interval([side["acr"] for side in sides])]
    for radius in radii:
        known = radius in found["radii"]
        place = found["radii"].index(radius) if known else 0
        shares = [side["certified_accuracy"][place] for side in sides]
        cells.append(interval(shares, 1) if known else "")
    return cells


def n100000() -> str:
    rows = []
    found = read("n100000")
    for group in found["groups"]:
        shares = group["certified_accuracy"][:13:2]
        rows.append([group["method"], f"{group['sigma']:g}", f"{group['acr']:.3f}",
                     *(f"{share:.1f}" for share in shares)])  # fmt: skip
    head = ("method", "σ", "ACR", *(f"{radius:.2f}" for radius in found["radii"][:13:2]))
    differences = [
        f"{_difference(f'n100000-{sigma}-smoothadv', ())[1]} at σ = {sigma} (paper {printed})"
        for sigma, printed in (("0.5", "+0.005"), ("1.0", "+0.012"))
    ]
    return f"{table(head, rows, 2)}\n\nDRF − SmoothAdv, ACR: {' and '.join(differences)}."


def readings() -> str:
    claims = script("claims")
    found = read("readings")["readings"]
    return claims.table(found)


def h100() -> str:
    rows = []
    for path in sorted(HERE.glob("h100-*.json")):
        base, group = json.loads(path.read_text())["groups"]
        acr = [" / ".join(f"{each['acr']:.3f}" for each in of["logs"]) for of in (base, group)]
        rows.append([path.stem.removeprefix("h100-"), *acr, _difference(path.stem, ())[1]])
    head = ("reading", "SmoothAdv, seeds 0 / 1", "DRF, seeds 0 / 1", "ACR − SmoothAdv")
    return table(head, rows)


def fig2() -> str:
    parts = [
        f"{method['name'].split(',')[0]} {method['mean']:.2f} and {method['quantiles']['0.5']:.2f}"
        for method in read("fig2")["methods"]
    ]
    return f"Mean and median gap: {', '.join(parts)}."


def sweeps() -> str:
    swept = script("sweeps")
    head = ("swept", "values", "ACR", "r = 0", "r = 2", "mean distance")
    return table(head, swept.rows(swept.both()), 2)


def costs() -> str:
    return script("cost").table(HERE.parent / "benchmarks.json")


def default() -> str:
    found = read("default")
    if not found:
        return (
            "Not yet run with the present default; the curve shows the former one. The command is\n"
            "`drf-fast train --json > docs/results/default.json`."
        )
    report, metrics = found["report"], found["metrics"]
    group = report["groups"][0]
    return (
        f"ACR {group['acr']:.3f} over {report['images']} images (σ = {group['sigma']:g}, n = "
        f"{report['n']:,}, α = {report['alpha']:g}),\n"
        f"{100 * metrics['test_accuracy_under_noise']:.1f} % accuracy under noise, mean distance "
        f"{metrics['distance']:.3f}, λ {metrics['lambda']:.3f}."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "full": full,
    "decide": decide,
    "frontier": frontier,
    "pairs": pairs,
    "sweeps": sweeps,
    "cost": costs,
    "table1-1.0": lambda: table1(1.0),
    "table1-0.5": lambda: table1(0.5),
    "catrs": catrs,
    "n100000": n100000,
    "readings": readings,
    "h100": h100,
    "fig2": fig2,
    "default": default,
}


IN_README: dict[str, Callable[[], str]] = {"rows": rows}


def filled(text: str, blocks: dict[str, Callable[[], str]] = BLOCKS) -> str:
    """A page with every one of its ``blocks`` written anew.

    Raises:
        ValueError: a block is missing, unknown or there twice.
    """
    names = re.findall(r"^<!-- (?!/)(\S+) -->$", text, re.MULTILINE)
    if sorted(names) != sorted(blocks):
        raise ValueError(f"expected one block each of {', '.join(blocks)}, got {', '.join(names)}")
    for name, made in blocks.items():
        pattern = rf"(?s)(?<=^<!-- {re.escape(name)} -->\n).*?(?=^<!-- /{re.escape(name)} -->$)"
        content = made()
        text, count = re.subn(pattern, lambda _, c=content: f"{c}\n", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"block {name} has no end: expected <!-- /{name} -->")
    return text


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    for path, blocks in ((PAGE, BLOCKS), (README, IN_README)):
        path.write_text(filled(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
