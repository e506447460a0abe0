"""docs/results.md says what the JSON beside it says."""

from __future__ import annotations

import json

import pytest
from results_scripts import RESULTS, script


def test_the_page_says_what_its_json_says():
    page = script("page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run python docs/results/page.py"


def test_readme_shows_the_rows_of_the_full_protocol():
    page = script("page")
    text = page.README.read_text(encoding="utf-8")
    assert page.filled(text, page.IN_README) == text, "run python docs/results/page.py"
    shown, found = page.rows(), json.loads((RESULTS / "full.json").read_text(encoding="utf-8"))
    for row in (row for row in found["rows"] if row["seed"] == 0):
        assert f"| {row['acr']:.3f} ± {row['error']:.3f} | {row['paper']:.3f} |" in shown
    for pair in found["pairs"]:
        gain = f"{pair['difference']:+.3f} ± {pair['error']:.3f} (the paper: {pair['paper']:+.3f})"
        assert gain in text


def test_another_number_in_the_page_is_noticed():
    page = script("page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert "1.437 ± 0.000" in text  # of n1000.json
    assert page.filled(text.replace("1.437 ± 0.000", "1.438 ± 0.000")) == text


def test_another_number_in_the_json_is_noticed(tmp_path, monkeypatch):
    page = script("page")
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    found = json.loads((tmp_path / "n1000.json").read_text())
    found["groups"][0]["acr"] += 0.01
    (tmp_path / "n1000.json").write_text(json.dumps(found))
    text = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    assert page.filled(text) != text


@pytest.mark.parametrize("change", ["missing", "twice", "without an end"])
def test_a_damaged_page_is_refused(change):
    page = script("page")
    text = page.PAGE.read_text(encoding="utf-8")
    if change == "missing":
        text = text.replace("<!-- full -->", "")
    elif change == "twice":
        text += "\n<!-- full -->\n<!-- /full -->\n"
    else:
        text = text.replace("<!-- /full -->", "")
    with pytest.raises(ValueError, match="expected"):
        page.filled(text)


def test_the_default_run_is_told_from_what_train_prints_as_json(tmp_path, monkeypatch):
    page = script("page")
    report = json.loads((RESULTS / "n1000-0.5-smoothadv.json").read_text())
    metrics = {"test_accuracy_under_noise": 0.9694, "distance": 1.0004, "lambda": 0.455}
    (tmp_path / "default.json").write_text(json.dumps({"report": report, "metrics": metrics}))
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    said = page.default()
    assert f"ACR {report['groups'][0]['acr']:.3f} over 10000 images (σ = 0.5, n = 1,000" in said
    assert "96.9 % accuracy under noise, mean distance 1.000, λ 0.455." in said


def test_table_1_takes_rows_of_catrs_where_they_have_been_run(tmp_path, monkeypatch):
    page = script("page")
    found = json.loads((RESULTS / "n1000.json").read_text())
    (tmp_path / "n1000.json").write_text(json.dumps(found))
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    without = page.table1(0.5)
    group = next(g for g in found["groups"] if (g["method"], g["sigma"]) == ("gaussian", 0.5))
    catrs = {**group, "method": "catrs", "acr": 1.25}
    (tmp_path / "n1000-catrs.json").write_text(json.dumps({**found, "groups": [catrs]}))
    added = page.table1(0.5).removeprefix(without)
    shares = [f"{share:.1f}" for share in group["certified_accuracy"][:5]]
    assert added == f"\n| catrs | 1 | 1.250 | {' | '.join(shares)} |"
    assert page.table1(1.0).count("catrs") == 0  # of which there are none


def test_what_is_not_yet_run_is_a_sentence_with_its_command(tmp_path, monkeypatch):
    page = script("page")
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    for name in ("full", "decide", "frontier", "catrs"):
        said = page.BLOCKS[name]()
        assert said.startswith("Not yet run") and f"docs/results/{name}.sh" in said
        assert "|" not in said and (RESULTS / f"{name}.sh").exists()


def test_the_full_protocol_says_which_of_its_rows_are_missing(tmp_path, monkeypatch):
    page = script("page")
    row = {"sigma": 1.0, "seed": 0, "precision": "bf16", "acr": 1.5, "paper": 1.62,
           "difference": -0.12, "error": 0.004, "of_the_part": {"images": 2000},
           "of_all": {"images": 10_000}}  # fmt: skip
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    published = [f"{method}-published" for method in ("smoothadv", "smoothadv-drf")]
    pair = {"sigma": 1.0, "seed": 0, "method": published[1], "baseline": published[0],
            "difference": 0.02, "error": 0.003, "paper": 0.012, "images": 250}  # fmt: skip
    for ran, pairs, expected in (
        (["gaussian", "smoothadv-drf"], [],
         "stability, macer, smoothmix, smoothadv, consistency, consistency-drf"),
        (["gaussian", *published], [pair],
         "stability, macer, smoothmix, smoothadv by the paper's text, "
         "smoothadv-drf by the paper's text, consistency, "
         "consistency-drf"),
        (list(page.PROTOCOL), [], ""),
    ):  # fmt: skip
        rows = [{**row, "method": method} for method in ran]
        (tmp_path / "full.json").write_text(json.dumps({"rows": rows, "pairs": pairs}))
        said = page.full()
        assert said.count("| 1.500 | 1.620 | -0.120 | 0.004 | 2,000 |") == len(ran)
        between = (
            "| smoothadv-drf-published − smoothadv-published | 1 | 0 | +0.020 | 0.003 | +0.012 |"
        )
        assert said.count(f"{between} 250 |") == said.count("DRF − baseline") == len(pairs)
        left = said.replace("\n", " ").partition("Not yet run at σ = 1: ")[2].partition(". With")[0]
        assert left == expected
        assert f'    METHODS="{" ".join(ran)}" SKIP=5 docs/results/full.sh ' in said
