"""The programs of docs/results: their estimators and commands, and what follows from results."""

from __future__ import annotations

import collections
import json
import math
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_scripts import RESULTS, certified, script

import drf_fast
from drf_fast.config import arguments, reading, training
from drf_fast.config.options import CertifyConfig
from drf_fast.report import style

# ------------------------------------------------------------------------------- which form wins


def networks(folder: Path, gains: dict[str, float], seeds: dict[str, tuple[int, ...]]) -> None:
    """Logs of decide.sh, ``gains`` more of 1,000 votes for each form."""
    generator = np.random.default_rng(1)
    base = generator.integers(600, 950, 40)
    for sigma, of in seeds.items():
        for seed in of:
            for kind, more in {"baseline": 0.0, **gains}.items():
                path = folder / f"{sigma}-{kind}-{seed}.tsv"
                counts = (base + 3 * seed + more).astype(int).tolist()
                certified(path, list(range(40)), counts, 1000, training={"precision": "fp32"})
                run = path.with_suffix("")
                run.mkdir()
                epochs = [
                    {"distance": far, "epsilon": 1.0, "lambda": 0.4} for far in (0.9, 1.01, 1)
                ]
                (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)) + "\n")


def test_gains_are_means_over_pairs_and_images_with_an_interval_around_them():
    decide, generator = script("decide"), np.random.default_rng(3)
    large, small = generator.normal(0.01, 0.05, (5, 300)), generator.normal(0.0, 0.05, (3, 300))
    middle, low, high = decide.gain({"1.0": large, "0.5": small})
    assert middle == pytest.approx(np.concatenate([large, small]).mean())
    assert low < middle < high
    # Images and seeds are independent here, so the error is near that of all values.
    error = np.concatenate([large, small]).std() / math.sqrt(8 * 300)
    assert 0.8 * 3.92 * error < high - low < 2.5 * 3.92 * error


def test_a_gain_of_all_alike_has_no_interval():
    middle, low, high = script("decide").gain({"1.0": np.full((3, 50), 0.25)})
    assert (middle, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_an_interval_over_seeds_covers_as_often_as_it_says():
    decide, generator = script("decide"), np.random.default_rng(5)
    decide.RESAMPLES = decide.CHUNK = 400
    covered = 0
    for _ in range(200):
        seeds = generator.normal(0, 0.02, (8, 1)) + generator.normal(0, 0.02, (1, 100))
        _, low, high = decide.gain({"1.0": seeds + generator.normal(0, 0.05, (8, 100))})
        covered += low <= 0 <= high
    assert 0.86 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    "prox, shrink, winner",
    [(0.01, 0.0119, "prox"), (0.01, 0.0121, "shrink"), (0.01, 0.0, "prox"), (0.0, 0.0, "prox")],
)
def test_a_difference_below_the_tie_is_won_by_the_exact_step(prox, shrink, winner):
    assert script("decide").verdict(prox, shrink) == winner


def test_there_is_no_winner_before_all_runs_are_there(tmp_path):
    decide = script("decide")
    networks(tmp_path, {"prox": 4.0, "shrink": 20.0}, {"1.0": (0, 2), "0.5": (1,)})
    found = decide.report(tmp_path)
    assert found["winner"] is None and not found["complete"]
    assert found["seeds"] == {"1.0": [0, 2], "0.5": [1]}
    assert found["networks"]["0.5-prox-1"]["from_epsilon"] == pytest.approx(0.01)
    assert len(found["networks"]) == 9
    assert found["gain"]["shrink"][0] > found["gain"]["prox"][0] > 0
    (tmp_path / "rest").mkdir()
    networks(tmp_path / "rest", {"prox": 4.0, "shrink": 20.0}, decide.SEEDS)
    whole = decide.report(tmp_path / "rest")
    assert whole["complete"] and whole["winner"] == "shrink"
    assert whole["shrink_minus_prox"][0] == pytest.approx(
        whole["gain"]["shrink"][0] - whole["gain"]["prox"][0]
    )


@pytest.mark.parametrize("lines", [0, 1, -1, None])
def test_a_pair_counts_only_with_its_three_logs_whole(tmp_path, lines):
    """Half a line is what a process that was killed leaves, a header one that has just begun."""
    decide = script("decide")
    networks(tmp_path, {"prox": 4.0, "shrink": 20.0, "udr": 1.0}, {"1.0": (0, 1), "0.5": (2,)})
    log = tmp_path / "1.0-prox-1.tsv"
    text = log.read_text()
    log.write_text(text[:-3] if lines is None else "".join(text.splitlines(True)[:lines]))
    found = decide.report(tmp_path)
    assert found["seeds"] == {"1.0": [0], "0.5": [2]}
    assert {name for name in found["networks"] if name.endswith("-1")} == set()
    shrink, prox = (found["gain"][form][0] for form in ("shrink", "prox"))
    assert found["shrink_minus_prox"][0] == pytest.approx(shrink - prox)


def test_the_page_says_what_partial_and_whole_results_decide(tmp_path, monkeypatch):
    decide, page = script("decide"), script("page")
    decide.RESAMPLES = decide.CHUNK = 100
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))

    def told(folder: str, gains: dict[str, float], seeds: dict[str, tuple[int, ...]]) -> str:
        (tmp_path / folder).mkdir()
        networks(tmp_path / folder, gains, seeds)
        (tmp_path / "decide.json").write_text(json.dumps(decide.report(tmp_path / folder)))
        return page.decide().replace("\n", " ")

    assert told("none", {"prox": 4.0}, {"1.0": (0,)}).startswith("Not yet run")
    part = told("part", {"prox": 20.0, "shrink": 4.0, "udr": 1.0}, {"1.0": (0, 3)})
    assert part.startswith("Some runs are missing. So far: 2 seeds at σ = 1.0, fp32.")
    assert "This decides nothing yet" in part and "| `udr` | 1.0 | 2 |" in part
    assert "more than 1.0 % from ε" in part
    whole = told("whole", {"prox": 4.0, "shrink": 20.0}, decide.SEEDS)
    assert "By the rule `shrink` is the default." in whole and "missing" not in whole
    tie = told("tie", {"prox": 4.0, "shrink": 4.0}, decide.SEEDS)
    assert "By the rule, as this is a tie, `prox` is the default." in tie


def test_code_and_pages_follow_what_the_runs_decided():
    """The default form is that of the rule, and README and train.md tell the same results."""
    found = json.loads((RESULTS / "decide.json").read_text(encoding="utf-8"))
    readme, train = (
        " ".join((RESULTS.parents[1] / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/train.md")
    )
    assert found["winner"] in (None, reading.FORM)
    assert ("udr" in found["gain_by_sigma"]["1.0"]) == ("| not yet run |" not in train)
    gains = {sigma: of[reading.FORM][0] for sigma, of in found["gain_by_sigma"].items() if of}
    for sigma, gain in gains.items():
        assert f"{gain:+.3f} over {len(found['seeds'][sigma])} seeds" in readme
    points = json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8"))["points"]
    best = {}
    for method, of in points.items():
        curve = collections.defaultdict(list)
        for point in of:
            curve[point["epsilon"]].append(point["acr"])
        best[method] = max(map(np.mean, curve.values()))
    assert f"{best['prox']:.3f} with DRF, {best['baseline']:.3f} without" in readme


# ------------------------------------------------------------------------------- the fair frontier


def test_a_point_lies_above_the_curve_by_what_interpolation_says(tmp_path, monkeypatch):
    frontier, acr = script("frontier"), {}

    def run(kind: str, seed: int, epsilon: str, distance: float, count: int) -> None:
        name = "-".join(["1.0", kind, str(seed), *([epsilon] if epsilon != "1" else [])])
        trained = {"precision": "bf16"}
        certified(tmp_path / f"{name}.tsv", list(range(4)), 4 * [count], 1000, training=trained)
        (tmp_path / name).mkdir()
        last = {"distance": distance, "epsilon": float(epsilon)}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(last) + "\n")
        acr[name] = float(drf_fast.certified_radius(count, 1000, sigma=1.0, alpha=0.001))

    for seed in (0, 1):
        run("baseline", seed, "1", 1.0, 800 + seed)
        run("baseline", seed, "2", 2.0, 850 + seed)
        run("prox", seed, "1", 1.25, 840 + 5 * seed)
        run("prox", seed, "2", 2.5, 900)
    run("baseline", 2, "1", 1.0, 800)  # a seed that is not finished does not count
    run("prox", 2, "1", 1.0, 800)
    run("baseline", 0, "0.5", 0.5, 700)  # neither does an epsilon of one method
    run("prox", 3, "2", 1.5, 950)  # nor a seed of decide.sh alone
    found = frontier.report(tmp_path)
    (point,) = found["above"]["acr"]  # epsilon 2 lies beyond the end of the curve
    assert (point["epsilon"], point["seeds"]) == (1, 2)
    gains = [
        acr[f"1.0-prox-{seed}"]
        - (0.75 * acr[f"1.0-baseline-{seed}"] + 0.25 * acr[f"1.0-baseline-{seed}-2"])
        for seed in (0, 1)
    ]
    assert point["gain"] == pytest.approx(np.mean(gains), abs=1e-9)
    assert point["error"] == pytest.approx(abs(gains[1] - gains[0]) / 2, abs=1e-9)
    values = acr["1.0-baseline-0"], acr["1.0-baseline-1"]
    assert frontier.curve(found["points"]["baseline"], "acr")[0] == pytest.approx(
        (1.0, np.mean(values), min(values), max(values))
    )
    frontier.draw(found["points"], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    drawn: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    frontier.draw(found["points"], tmp_path / "figure.png")
    named = [bool(axes.get_xlabel()) for axes in drawn[0].axes]
    ticked = [axes.xaxis.get_tick_params()["labelbottom"] for axes in drawn[0].axes]
    assert named == ticked == [False, False, True, True]  # a named axis has numbers
    assert all(axes.get_ylabel() for axes in drawn[0].axes)
    assert not any(axes.spines["top"].get_visible() for axes in drawn[0].axes)
    page = script("page")
    monkeypatch.setattr(page.read, "__defaults__", (tmp_path,))
    (tmp_path / "frontier.json").write_text(json.dumps(found))
    said = page.frontier().replace("\n", " ")
    # Two seeds have one degree of freedom, whose limit is 12.7 standard errors.
    half = 12.7062 * point["error"]
    beyond, below = int(point["gain"] > half), int(point["gain"] < -half)
    assert f"curve at 1 of 1 ε, at {beyond} of them by more than chance over these seeds" in said
    assert f"below it by as much at {below}. Of 4 pairs of the same ε and seed, its ACR is" in said
    assert frontier._beyond_chance({"gain": 1.0, "error": 0.0788, "seeds": 2}) == 0
    assert frontier._beyond_chance({"gain": 1.0, "error": 0.0786, "seeds": 2}) == 1
    assert frontier._beyond_chance({"gain": -4.31, "error": 1.0, "seeds": 3}) == -1
    best = np.mean([acr[f"1.0-prox-{seed}-2"] for seed in (0, 1)])
    assert f"The highest mean ACR is {best:.4f} at ε = 2 with DRF" in said
    gains = [acr[f"1.0-prox-{seed}-2"] - acr[f"1.0-baseline-{seed}-2"] for seed in (0, 1)]
    assert np.mean(gains) > 12.71 * abs(gains[1] - gains[0]) / 2
    assert "at ε = 2 without, a difference beyond chance." in said
    assert said.partition("\n")[0].count("The arithmetic is bf16.") == 1
    (tmp_path / "frontier.json").write_text(json.dumps({"above": {"acr": []}}))
    assert page.frontier().endswith(
        "No point of DRF lies within the ends of SmoothAdv's curve yet."
    )
    point["error"] = None
    (tmp_path / "frontier.json").write_text(json.dumps({**found, "above": {"acr": [point]}}))
    said = page.frontier().replace("\n", " ")
    assert "so far 2 of 6 ε, 2 of 3 seeds. DRF" in said
    assert "at 1 of 1 ε; with one seed no error is known" in said


# -------------------------------------------------------------------------- the sweeps of Fig. 3


def test_the_sweeps_are_told_by_value_and_form(tmp_path, monkeypatch):
    sweeps = script("sweeps")
    swept = {
        "baseline": ("grad-norm", ("image", "batch")),
        "prox-image": ("lambda0", (0.5, 2.0)),
        "prox-image-rate": ("lambda-lr", (0.001,)),
        "prox-image-kappa": ("kappa", (10, 300)),
    }
    numbers = {"r0.00": 91.26, "r1.00": 70.0, "r2.00": 27.0, "distance": 1.004, "lambda": 0.4}
    for place, (name, (option, values)) in enumerate(swept.items()):
        settings = [
            {"values": {option: value}, "mean": {**numbers, "acr": 1.4 + place / 100 + at / 1000}}
            for at, value in enumerate(values)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"settings": settings}))
    found = sweeps.report(tmp_path)
    assert found["baseline"]["acr"] == 1.4 and list(found["kappa"]) == ["10", "300"]
    other = {"lambda0": {"1.0": {**numbers, "acr": 1.5}}}  # of a form of which only one was swept
    rows = sweeps.rows({"default": found, "epoch": other})
    assert [row[0][0] for row in rows] == ["λ", "ζ", "κ", "λ"] and "default" in rows[2][0]
    assert rows[2][1:] == [
        "10 / 300", "1.430 / 1.431", "91.3 / 91.3", "27.0 / 27.0", "1.00 / 1.00"
    ]  # fmt: skip
    drawn: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    sweeps.draw({"default": found, "epoch": other}, [1.39, 1.41], tmp_path / "figure.png")
    panels = drawn[0].axes
    assert [[len(line.get_xdata()) for line in axes.lines] for axes in panels] == [[2, 1], [1], [2]]
    assert [axes.get_xlabel() for axes in panels] == ["λ₀", "ζ", "κ"]


# --------------------------------------------------------------------------------- the commands

RECORDER = """#!/bin/sh
printf '%s\\n' "$@" >"$RECORDED/$$"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs bash")
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("decide", {"train": 25, "certify": 25}),
        ("frontier", {"train": 36, "certify": 36}),
        ("full", {"train": 10, "certify": 20}),
    ],
)
def test_every_command_of_a_script_is_one_that_there_is(tmp_path, name, commands):
    """A program that records its words stands for drf-fast."""
    (tmp_path / "bin").mkdir()
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    recorder = tmp_path / "bin" / "drf-fast"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    full, methods = script("full"), {}
    if name == "full":
        published = [f"{method}{full.PUBLISHED}" for method in ("smoothadv", "smoothadv-drf")]
        methods = {"METHODS": " ".join([*full.METHODS, *published])}
    environment = {
        **os.environ, **methods, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RECORDED": str(recorded), "FLAGS": "--device cpu",
    }  # fmt: skip
    words = [RESULTS / f"{name}.sh", tmp_path, tmp_path / "runs"]
    subprocess.run(["bash", *words], env=environment, check=True, timeout=120)
    called = [path.read_text().splitlines() for path in recorded.iterdir()]
    assert Counter(each[0] for each in called) == commands
    for command, *rest in called:
        if command == "train":
            config = arguments.parse_train(rest)
            training.check(config)
            assert config.resume and config.threads == 1 and config.device == "cpu"
            assert name != "full" or (config.epochs, config.batch_size) == (90, 256)
            reading = (config.split_batches, config.late_drop, not config.nesterov)
            assert reading == 3 * (full.PUBLISHED in str(config.out),)
        else:
            config = arguments.parse(CertifyConfig, "certify", rest)
            assert config.resume and config.n in (1000, 100_000) and config.device == "cpu"


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
@pytest.mark.parametrize("name", ["decide", "frontier", "full", "catrs"])
def test_a_script_names_the_run_that_failed_and_its_log(tmp_path, name):
    program = tmp_path / "bin" / "drf-fast"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho why\nexit 3\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    runs = tmp_path / "runs"
    words = [runs, tmp_path] if name == "catrs" else [tmp_path, runs]
    done = subprocess.run(
        ["bash", RESULTS / f"{name}.sh", *words],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode
    said = [line.split(" failed, see ") for line in done.stderr.splitlines() if "failed" in line]
    assert said and all(Path(log).read_text() == "why\n" for _, log in said)
