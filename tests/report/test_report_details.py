"""Bounds of certified accuracy, the cap on the radius, and the distribution of p_lower."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from report_logs import run
from scipy import stats

from drf_fast.certification.log import CertificationLog, Row, read_log
from drf_fast.certification.noise import drawn_sigma
from drf_fast.certification.stopping import certificate
from drf_fast.errors import InputError
from drf_fast.report import summarize
from drf_fast.report.groups import largest_radius
from drf_fast.report.intervals import clopper_pearson
from drf_fast.report.plot import ecdf

PEERS = Path(__file__).parents[1] / "golden" / "peer_logs"
CONFIG: dict[str, Any] = {
    "method": "gaussian",
    "sigma": 0.5,
    "n0": 100,
    "n": 1000,
    "alpha": 0.001,
    "budget": "fixed",
}
# (count, predict), label 3: two reach the cap, one of them wrong; an abstention last
COUNTS = [(1000, 3), (1000, 5), (990, 3), (700, 3), (500, -1)]


def log_of(path: Path, counts=COUNTS, **config: Any) -> Path:
    settings: dict[str, Any] = CONFIG | config
    sigma, n, alpha, budget = (settings[key] for key in ("sigma", "n", "alpha", "budget"))
    with CertificationLog.create(path, settings) as log:
        for idx, (count, predict) in enumerate(counts):
            proof = certificate(count, n, n, sigma=drawn_sigma(sigma), alpha=alpha, budget=budget)
            log.append(Row(idx, 3, predict, proof.radius, 1.0, count, n, proof.p_lower))
    return path


def entry_of(*paths: Path):
    return summarize([read_log(path) for path in paths]).groups[0]


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("images", [1, 5, 100, 10_000])
def test_the_interval_is_that_of_the_beta_distribution(images):
    counts = np.unique(np.linspace(0, images, 41).round())
    lower, upper = clopper_pearson(counts, images)
    with np.errstate(invalid="ignore"):
        below = np.where(counts == 0, 0, stats.beta.ppf(0.025, counts, images - counts + 1))
        above = np.where(counts == images, 1, stats.beta.ppf(0.975, counts + 1, images - counts))
    assert lower == pytest.approx(below, abs=1e-12) and upper == pytest.approx(above, abs=1e-12)


def test_a_mean_over_seeds_is_rounded_outwards():
    lower, upper = clopper_pearson(np.array([3.5, 30 * (0.1 + 0.2) / 3]), 10)
    low, high = clopper_pearson(np.array([3.0, 4.0]), 10)
    assert lower.tolist() == [low[0], low[0]] and upper.tolist() == [high[1], high[0]]


def test_bounds_stand_below_the_shares(tmp_path, capsys):
    assert run([log_of(tmp_path / "a.tsv")], details=True) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    lower, upper = clopper_pearson(np.array([3.0, 2, 2, 2, 1]), 5)  # at 0, 0.25, ..., 1.0
    assert lines[1][4:] == ["60.0", "40.0", "40.0", "40.0", "20.0", "20.0"]
    assert lines[2] == ["lower", "95", "%", *(f"{100 * p:.1f}" for p in lower)]
    assert lines[3] == ["upper", "95", "%", *(f"{100 * p:.1f}" for p in upper)]


def test_the_default_table_says_how_far_its_shares_hold(tmp_path, capsys):
    assert run([log_of(tmp_path / "a.tsv")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert "shares hold to within 51.6 points (95 % Clopper-Pearson over images, not over" in out


# ---------------------------------------------------------------- the cap


@pytest.mark.parametrize("sigma", [0.5, 0.12])  # float32(0.12) is less
def test_right_images_at_the_cap_are_counted(tmp_path, sigma):
    entry = entry_of(log_of(tmp_path / "a.tsv", sigma=sigma))
    assert entry.group.cap == pytest.approx(largest_radius(sigma, 1000, 0.001))
    assert entry.at_cap == pytest.approx(20)  # the wrong one certifies nothing


def test_the_cap_of_an_anytime_budget_is_lower(tmp_path):
    path = log_of(tmp_path / "a.tsv", budget="anytime", radius=0.5)
    entry = entry_of(path)
    proof = certificate(1000, 1000, 1000, sigma=0.5, alpha=0.001, budget="anytime")
    assert entry.group.cap == proof.radius < largest_radius(0.5, 1000, 0.001)
    assert entry.at_cap == pytest.approx(20)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"radius": 0.5}, "budget anytime (stopped once R >= 0.5 was decided: larger radii are"),
        ({"tolerance": 0.1}, "budget anytime (stopped at a tolerance of 0.1)"),
    ],
)
def test_the_caption_says_how_an_anytime_run_stopped(tmp_path, capsys, config, words):
    run([log_of(tmp_path / "a.tsv", budget="anytime", **config)])
    out = capsys.readouterr().out
    assert words in out and "largest possible radius: 1.229 at" in out


def test_without_n_and_alpha_there_is_no_cap(capsys):
    entry = entry_of(*PEERS.glob("gaussian*.tsv"))
    assert entry.group.cap is None and entry.at_cap is None


def test_radii_of_other_units_do_not_fill_the_table(tmp_path):
    path = tmp_path / "mine_sigma64.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t200.5\t1\t0:00:01\n")
    radii = summarize([read_log(path)]).radii
    assert radii[:2] == (0.0, 16.0) and radii[-1] == 192.0


# ---------------------------------------------------------------- p_lower


def test_quantiles_count_what_is_not_certified_as_nothing(tmp_path):
    path = log_of(tmp_path / "a.tsv")
    entry = entry_of(path)
    logged = read_log(path).p_lower
    assert logged is not None
    # Sorted: nothing (the wrong one), nothing (the abstention), then 700, 990 and 1000 of 1000.
    assert entry.p_quantiles == (None, None, logged[3], logged[2], logged[2])


def test_published_radii_give_their_p_lower():
    paths = sorted(PEERS.glob("smoothadv*.tsv"))
    entry = entry_of(*paths)
    values = []
    for path in paths:
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        values += [
            NormalDist().cdf(float(row[3]) / 0.5) if row[1] == row[2] else 0.0 for row in rows
        ]
    expected = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9), method="lower")
    assert entry.p_quantiles == pytest.approx(tuple(expected), rel=1e-14)


def test_certified_accuracy_is_what_the_distribution_leaves(tmp_path):
    entry = entry_of(log_of(tmp_path / "a.tsv"), log_of(tmp_path / "b.tsv", COUNTS[::-1]))
    steps = ecdf(entry.group)
    assert steps is not None
    p, mean, lowest, highest = steps
    assert p[0] == 0.5 and mean.tolist() == pytest.approx([40, 60, 80, 100])
    assert np.array_equal(lowest, mean) and np.array_equal(highest, mean)
    for radius, share in zip((0.0, 0.25, 0.5, 1.0), (60, 40, 40, 20), strict=True):
        below = p < NormalDist().cdf(radius / 0.5)
        assert share == pytest.approx(100 - (mean[below][-1] if below.any() else mean[0]))


def test_a_group_without_sigma_has_no_distribution(tmp_path):
    path = tmp_path / "plain.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01\n")
    entry = entry_of(path)
    assert ecdf(entry.group) is None and entry.p_quantiles == (None,) * 5
    with pytest.raises(InputError, match="expected logs with p_lower, or with a radius and a"):
        run([path], plot_p=tmp_path / "p.png")


@pytest.mark.parametrize("name", ["p.png", "p.pdf", "p.svg"])
def test_the_distribution_is_drawn(tmp_path, capsys, name):
    assert run(sorted(PEERS.glob("*.tsv")), plot_p=tmp_path / name, format="json") == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:]])
    assert f"wrote {tmp_path / name}" in capsys.readouterr().err
    if name.endswith("svg"):
        for words in ("p_lower of the true class", "smoothadv, σ = 0.5", "0.999"):
            assert words in content.decode()


def test_two_pictures_need_two_names(tmp_path):
    path = log_of(tmp_path / "a.tsv")
    with pytest.raises(InputError, match="expected two names"):
        run([path], plot=tmp_path / "a.png", plot_p=tmp_path / "." / "a.png")
    (tmp_path / "p.png").write_text("mine")
    with pytest.raises(InputError, match=r"p\.png exists"):
        run([path], plot=tmp_path / "a.png", plot_p=tmp_path / "p.png")
    assert not (tmp_path / "a.png").exists()
    assert run([path], plot=tmp_path / "a.png", plot_p=tmp_path / "p.png", force=True) == 0


# ---------------------------------------------------------------- output


DETAILS = """\
method    sigma  largest r  reach it  p 10%  p 25%    p 50%    p 75%    p 90%
gaussian    0.5      1.232    20.0 %      -      -  0.65347  0.97603  0.97603
"""


def test_the_second_table_is_narrow(tmp_path, capsys):
    run([log_of(tmp_path / "a.tsv")], details=True)
    out = capsys.readouterr().out
    assert DETAILS in out and max(map(len, out.split("\n\n")[1].splitlines())) <= 80


def test_json_and_csv_hold_the_details_unasked(tmp_path, capsys):
    path = log_of(tmp_path / "a.tsv")
    run([path], format="json")
    group = json.loads(capsys.readouterr().out)["groups"][0]
    lower, upper = clopper_pearson(np.array([3.0, 2, 2, 2, 1]), 5)
    assert group["certified_accuracy_lower"] == pytest.approx(100 * lower)
    assert group["certified_accuracy_upper"] == pytest.approx(100 * upper)
    assert group["at_cap"] == pytest.approx(20)
    assert list(group["p_lower_quantiles"]) == ["0.1", "0.25", "0.5", "0.75", "0.9"]
    assert group["p_lower_quantiles"]["0.1"] is None and group["p_lower_quantiles"]["0.75"] > 0.97
    assert group["logs"][0]["files"] == [str(path)]
    assert group["logs"][0]["certified_accuracy"] == pytest.approx([60, 40, 40, 40, 20])
    run([path], format="csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["row"] for row in rows] == ["measured", "lower", "upper"]
    assert rows[0]["at_largest"] == "20.000000" and rows[0]["p10"] == ""
    assert float(rows[2]["r0.00"]) == pytest.approx(100 * upper[0], abs=1e-6)


@pytest.mark.parametrize(("format", "tables"), [("markdown", "| method"), ("latex", "{tabular}{")])
def test_the_second_table_comes_in_every_style(tmp_path, capsys, format, tables):
    path = log_of(tmp_path / "a.tsv")
    for details in (False, True):
        run([path], format=format, details=details)
        assert capsys.readouterr().out.count(tables) == 1 + details


def test_names_are_no_markup_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    run([log_of(tmp_path / "a.tsv", method="[red]mine[/blue]")], details=True)
    assert capsys.readouterr().out.count("[red]mine[/blue]") == 2


def test_names_are_no_formulas_in_a_figure(tmp_path):
    path = log_of(tmp_path / "a.tsv", method=r"$\frac{ours}$")
    run([path], plot=tmp_path / "a.svg", plot_p=tmp_path / "p.svg")
    for name in ("a.svg", "p.svg"):
        assert r"$\frac{ours}$, σ = 0.5" in (tmp_path / name).read_text(encoding="utf-8")
