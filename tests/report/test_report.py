"""The report: its statistics, its groups and Table 1."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from report_logs import FIRST, SECOND, field, ours, run, summary_of

from drf_fast.report import paper
from drf_fast.report.groups import largest_radius
from drf_fast.report.plot import closed, curve
from drf_fast.report.tables import caption

PEERS = Path(__file__).parents[1] / "golden" / "peer_logs"
pytestmark = pytest.mark.usefixtures("radii_by_hand")


# ---------------------------------------------------------------- statistics


def test_the_numbers_are_those_of_the_definitions(tmp_path):
    logs = [
        ours(tmp_path / "a" / "certify.tsv", FIRST, seed=1),
        ours(tmp_path / "b" / "certify.tsv", SECOND, seed=2),
    ]
    summary = summary_of(*logs)
    (entry,) = summary.groups
    # By hand: (1 + .5 + .25) / 5 and (.7625 + .125 + 0) / 5; the wrong 0.75 counts nothing.
    assert entry.acr == pytest.approx((0.35, 0.1775))
    assert entry.acr_mean == pytest.approx(0.26375)
    assert entry.acr_std == pytest.approx(0.1725 / np.sqrt(2))
    assert summary.radii == (0.0, 0.25, 0.5, 0.75, 1.0)
    # R >= r, so a radius of exactly 0.25 counts at 0.25; shares of 5 images in each log
    assert entry.certified == pytest.approx((60, 40, 30, 20, 10))
    assert entry.abstained == pytest.approx(30)
    assert (entry.group.method, entry.group.sigma, summary.images) == ("gaussian", 0.5, 5)


def test_a_single_log_has_no_deviation(tmp_path):
    assert summary_of(ours(tmp_path / "a.tsv")).groups[0].acr_std is None


def test_a_log_without_any_right_prediction_is_reported(tmp_path):
    summary = summary_of(ours(tmp_path / "a.tsv", [(1, -1, 0.0), (2, 0, 0.5)]))
    assert summary.radii == (0.0,)
    assert summary.groups[0].acr_mean == 0 and summary.groups[0].certified == (0.0,)


def test_the_order_of_rows_does_not_matter(tmp_path):
    forward, backward = ours(tmp_path / "a.tsv"), tmp_path / "b.tsv"
    ours(backward)
    lines = backward.read_text().splitlines(keepends=True)
    backward.write_text("".join([lines[0], *reversed(lines[1:])]))
    entry = summary_of(forward, backward).groups[0]
    assert entry.acr[0] == pytest.approx(entry.acr[1]) and entry.acr_std == pytest.approx(0)


@pytest.mark.parametrize(
    ("sigma", "n", "alpha"), [(0.5, 100_000, 0.001), (1.0, 1000, 0.001), (0.25, 10**9, 1e-12)]
)
def test_the_cap_is_the_radius_of_unanimous_samples(sigma, n, alpha):
    import mpmath

    with mpmath.workdps(50):
        p = mpmath.mpf(alpha) ** (mpmath.mpf(1) / n)
        exact = mpmath.mpf(sigma) * mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
    assert largest_radius(sigma, n, alpha) == pytest.approx(float(exact), rel=1e-12)


def test_the_cap_is_zero_where_no_radius_can_be_certified():
    assert largest_radius(1.0, 1, 0.3) == 0.0  # one sample: p_lower = alpha, below 1/2
    assert largest_radius(1.0, 1, 1e-20) == 0.0  # of which 1 - alpha is 1


# ---------------------------------------------------------------- published logs


def test_published_logs_are_grouped_by_their_names():
    summary = summary_of(*sorted(PEERS.glob("*.tsv")))
    names = [(e.group.method, e.group.sigma, len(e.acr)) for e in summary.groups]
    assert names == [("gaussian", 0.5, 2), ("smoothadv", 0.5, 2)]
    assert summary.images == 500
    # Recomputed from the text of the files, with no code of the package.
    for entry in summary.groups:
        for log, acr in zip(entry.group.logs, entry.acr, strict=True):
            rows = [line.split("\t") for line in log.path.read_text().splitlines()[1:]]
            assert acr == pytest.approx(sum(float(r[3]) for r in rows if r[1] == r[2]) / 500)
    assert all(entry.paper is None for entry in summary.groups)  # 500 of 10,000 images


@pytest.mark.parametrize(
    ("name", "method", "sigma"),
    [
        ("smoothadv_sigma0.50_3916.tsv", "smoothadv", 0.5),
        ("gaussian_sigma1.00.txt", "gaussian", 1.0),
        ("cohen/noise_0.50_880", "cohen", 0.5),
        ("macer/noise_1", "macer", 1.0),
        ("sigma_0.25_my-method_7.tsv", "my-method", 0.25),
        ("plain_3.tsv", "plain", None),
    ],
)
def test_names_tell_method_and_sigma(tmp_path, name, method, sigma):
    group = summary_of(field(tmp_path / name)).groups[0].group
    assert (group.method, group.sigma) == (method, sigma)


def test_the_configuration_outranks_the_name(tmp_path):
    path = ours(tmp_path / "gaussian_sigma0.25_1.tsv", method="macer", sigma=0.5)
    group = summary_of(path).groups[0].group
    assert (group.method, group.sigma) == ("macer", 0.5)


def test_the_area_under_the_curve_is_the_acr():
    for entry in summary_of(*PEERS.glob("*.tsv")).groups:
        r, mean, _, _ = curve(entry.group)
        assert np.sum(np.diff(r) * mean[1:]) / 100 == pytest.approx(entry.acr_mean, rel=1e-12)


def test_beyond_the_largest_radius_nothing_is_certified():
    group = summary_of(*PEERS.glob("*.tsv")).groups[0].group
    for open_, shut in zip(curve(group), closed(curve(group)), strict=True):
        assert shut[:-1].tolist() == open_.tolist()
    r, *shares = closed(curve(group))
    assert r[-1] == r[-2] and [share[-1] for share in shares] == [0, 0, 0]


def test_unknown_n_and_alpha_are_called_unknown():
    summary = summary_of(*PEERS.glob("*.tsv"))
    assert "500 images; n and alpha unknown (no configuration" in caption(summary)


# ---------------------------------------------------------------- Table 1


def whole_mnist(monkeypatch) -> None:
    """Let the five labels of the synthetic logs pass for the MNIST test set."""
    import hashlib

    monkeypatch.setattr(paper, "IMAGES", 5)
    monkeypatch.setattr(
        paper, "_MNIST_TEST_LABELS", hashlib.sha256(bytes([3, 1, 2, 4, 0])).hexdigest()
    )


def test_the_embedded_table_has_its_24_rows():
    table = paper.table()
    assert len(table) == 24
    assert table[0.5, "smoothadv+drf"].acr == 1.693
    assert table[1.0, "consistency+drf"].certified[2.75] == 20.0
    assert table[0.25, "gaussian"].certified == dict(
        zip(np.arange(0, 3, 0.25), [99.2, 98.4, 96.7, 93.1] + [0.0] * 8, strict=True)
    )


def test_the_labels_of_the_embedded_subset_are_not_taken_for_mnist(tmp_path):
    assert summary_of(ours(tmp_path / "a.tsv")).groups[0].paper is None


@pytest.mark.parametrize(
    ("config", "option", "shown"),
    [
        ({"n": 100_000}, None, True),
        ({"n": 100_000}, False, False),
        ({"n": 1000}, None, False),
        ({"n": 1000}, True, True),
        ({"n": 100_000, "alpha": 0.01}, None, False),
        ({"n": 100_000, "budget": "anytime", "radius": 0.5}, None, False),
        ({"n": 100_000, "sigma": 0.75}, True, False),
        ({"n": 100_000, "method": "mine"}, True, False),
    ],
)
def test_table_1_stands_beside_comparable_logs_only(tmp_path, monkeypatch, config, option, shown):
    whole_mnist(monkeypatch)
    entry = summary_of(ours(tmp_path / "a.tsv", **config), paper=option).groups[0]
    assert (entry.paper is not None) == shown


def test_published_logs_of_all_mnist_are_compared(tmp_path, monkeypatch, capsys):
    whole_mnist(monkeypatch)
    run([field(tmp_path / "gaussian_sigma0.50_1.tsv")])
    lines = capsys.readouterr().out.splitlines()
    rows = [" ".join(line.split()) for line in lines[1:4]]
    assert rows == [
        "gaussian 0.5 1 0.350 60.0 60.0 40.0 20.0 20.0 20.0",
        "paper 1.555 99.1 98.3 96.9 94.3 89.7",
        "difference -1.205 -39.1 -38.3 -56.9 -74.3 -69.7",
    ]
    assert "Wang, Zhou, Liu (2024), Table 1" in lines[-1]


def test_csv_marks_the_rows_of_the_paper(tmp_path, monkeypatch, capsys):
    whole_mnist(monkeypatch)
    assert run([ours(tmp_path / "a.tsv", n=100_000)], format="csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    kinds = ["measured", "lower", "upper", "paper", "difference"]
    assert [row["row"] for row in rows] == kinds
    assert rows[3]["acr"] == "1.555000" and rows[4]["acr"] == "-1.205000"
    assert rows[3]["n"] == "100000" and rows[3]["largest_radius"] == ""
