"""docs/results/full.py: the estimate for all images, rows of networks, and pairs with DRF."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from results_scripts import certified, script

import drf_fast
from drf_fast.report import paper


def test_the_control_variate_is_its_formula():
    full = script("full")
    estimate, error = full.control_variate(
        np.array([3.0, 5.0]), np.array([1.0, 2.0]), np.array([1.0, 2.0, 6.0, 7.0])
    )
    assert estimate == pytest.approx(4.0 + 2.5)
    assert error == pytest.approx(math.sqrt(0.5) / math.sqrt(2) * math.sqrt(1 / 2))


def test_the_control_variate_of_all_images_is_their_mean_without_error():
    deep, wide = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 1.0])
    estimate, error = script("full").control_variate(deep, wide, wide)
    assert estimate == pytest.approx(deep.mean()) and error == 0.0


def test_the_control_variate_has_no_bias_its_error_is_right_and_less_than_without():
    full, generator = script("full"), np.random.default_rng(0)
    wide = generator.uniform(0, 2.4, 1000)
    deep = 1.2 * wide + generator.normal(0, 0.1, 1000)
    found = []
    for _ in range(2000):
        part = generator.choice(1000, 200, replace=False)
        found.append(full.control_variate(deep[part], wide[part], wide))
    estimates, errors = np.array(found).T
    spread = estimates.std()
    assert abs(estimates.mean() - deep.mean()) < 4 * spread / math.sqrt(2000)
    assert errors.mean() == pytest.approx(spread, rel=0.06)  # 4 standard errors of a deviation
    assert spread < 0.5 * deep.std() / math.sqrt(200) * math.sqrt(0.8)


@pytest.mark.parametrize("part, same, whole", [(1, 1, 9), (3, 2, 9), (3, 3, 2)])
def test_the_control_variate_refuses_other_images(part, same, whole):
    with pytest.raises(ValueError, match="expected both values of the same 2 to"):
        script("full").control_variate(np.ones(part), np.ones(same), np.ones(whole))


def test_a_row_of_the_full_protocol_is_made_of_both_logs(tmp_path):
    full, trained = script("full"), {"seed": 0, "epochs": 90, "precision": "bf16"}
    wide = [900, 950, 990, 700, 400, 999]
    deep = {0: 90_100, 4: 41_000, 2: 99_050}
    options = {"training": trained}
    for name in ("1.0-smoothadv-drf-0.tsv", "1.0-smoothadv-drf-published-0.tsv"):
        certified(tmp_path / "n1000" / name, list(range(6)), wide, 1000, **options)
        certified(tmp_path / "n100000" / name, list(deep), list(deep.values()), 100_000, **options)
    certified(tmp_path / "n100000" / "1.0-gaussian-0.tsv", [0], [90_000], 100_000, **options)
    for n in (1000, 100_000):  # not in the paper's table
        certified(tmp_path / f"n{n}" / "1-catrs-0.tsv", [0, 1], [900, 900], n, **options)
    row, published = full.report(tmp_path)["rows"]  # of gaussian one log is not there
    assert published == row | {"method": "smoothadv-drf-published"}

    def radius(count: int, n: int) -> float:
        return float(drf_fast.certified_radius(count, n, sigma=1.0, alpha=0.001))

    left = [radius(count, 100_000) - radius(wide[image], 1000) for image, count in deep.items()]
    acr = np.mean([radius(count, 1000) for count in wide]) + np.mean(left)
    assert row["acr"] == pytest.approx(acr, abs=1e-9)
    assert row["error"] == pytest.approx(np.std(left, ddof=1) / math.sqrt(3) * math.sqrt(0.5))
    printed = paper.table()[1.0, "smoothadv+drf"].acr
    assert row["difference"] == pytest.approx(acr - printed) and row["paper"] == printed
    assert row["certified"]["1.00"] == pytest.approx(200 / 3)


def test_a_pair_of_the_full_protocol_is_compared_image_by_image(tmp_path):
    """Of the images at the large n those that both have; no other reading, seed or sigma."""
    full = script("full")
    options = {"training": {"seed": 0, "epochs": 90, "precision": "bf16"}}
    wide = {"consistency": [900, 950, 990, 700, 400, 999],
            "consistency-drf": [910, 940, 991, 400, 700, 998]}  # fmt: skip
    deep = {"consistency": {0: 90_100, 1: 95_020, 2: 99_050, 4: 41_000},
            "consistency-drf": {4: 69_000, 2: 99_150, 0: 91_000}}  # fmt: skip
    for recipe in wide:
        name = f"1.0-{recipe}-published-0.tsv"
        certified(tmp_path / "n1000" / name, list(range(6)), wide[recipe], 1000, **options)
        certified(tmp_path / "n100000" / name, list(deep[recipe]), list(deep[recipe].values()),
                  100_000, **options)  # fmt: skip
    for name in ("1.0-consistency-drf-0", "1.0-consistency-drf-published-1"):
        certified(tmp_path / "n1000" / f"{name}.tsv", [0, 1], [900, 900], 1000, **options)
        certified(tmp_path / "n100000" / f"{name}.tsv", [0, 1], [90_000, 9], 100_000, **options)
    (pair,) = full.report(tmp_path)["pairs"]

    def radius(count: int, n: int) -> float:
        return max(0.0, float(drf_fast.certified_radius(count, n, sigma=1.0, alpha=0.001)))

    gains = [radius(b, 1000) - radius(a, 1000) for a, b in zip(*wide.values(), strict=True)]
    left = [
        radius(deep["consistency-drf"][image], 100_000)
        - radius(deep["consistency"][image], 100_000)
        - gains[image]
        for image in (0, 2, 4)
    ]
    assert pair["difference"] == pytest.approx(np.mean(gains) + np.mean(left), abs=1e-9)
    assert pair["error"] == pytest.approx(np.std(left, ddof=1) / math.sqrt(3) * math.sqrt(0.5))
    names = pair["method"], pair["baseline"], pair["seed"], pair["images"]
    assert names == ("consistency-drf-published", "consistency-published", 0, 3)
    printed = [paper.table()[1.0, method].acr for method in ("consistency+drf", "consistency")]
    assert pair["paper"] == pytest.approx(printed[0] - printed[1])


def test_the_commands_of_the_full_protocol_name_what_is_not_its_default():
    def row(method, sigma=1.0, seed=0, part=500):
        sizes = {"of_all": {"images": 10_000}, "of_the_part": {"images": part}}
        return {"method": method, "sigma": sigma, "seed": seed, **sizes}

    rows = [
        row("gaussian"), row("gaussian", seed=1), row("macer", part=250), row("stability"),
        row("gaussian", 0.25), row("macer", 0.25, 1),
    ]  # fmt: skip
    words = "docs/results/full.sh MNIST_FOLDER RUN_FOLDER"
    *runs, _ = script("full").commands(rows)
    assert runs == [
        f'METHODS="gaussian stability" SKIP=20 {words}',
        f'METHODS="gaussian" SKIP=20 SEED=1 {words}',
        f'METHODS="macer" SKIP=40 {words}',
        f'METHODS="gaussian" SKIP=20 SIGMA=0.25 {words}',
        f'METHODS="macer" SKIP=20 SIGMA=0.25 SEED=1 {words}',
    ]


def test_readme_has_the_networks_of_seed_0(tmp_path, monkeypatch):
    page = script("page")
    row = {"method": "gaussian", "sigma": 0.5, "seed": 0, "acr": 1.25, "error": 0.01, "paper": 1.5}
    rows = [row, row | {"seed": 1, "acr": 1.125}, row | {"sigma": 0.25, "acr": 1.375}]
    (tmp_path / "full.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    _, _, *shown = page.rows().splitlines()
    assert [line.split(" | ")[3] for line in shown] == ["1.250 ± 0.010", "1.375 ± 0.010"]
