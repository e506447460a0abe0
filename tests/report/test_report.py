"""The report: its statistics, its groups, Table 1, and what it refuses to mix."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from drf_fast.certification.log import CertificationLog, Row, read_log, reader
from drf_fast.commands.report import run
from drf_fast.errors import InputError
from drf_fast.report import paper, summarize
from drf_fast.report.groups import group_logs, largest_radius
from drf_fast.report.plot import curve
from drf_fast.report.tables import caption

PEERS = Path(__file__).parents[1] / "golden" / "peer_logs"
CONFIG = {
    "method": "gaussian",
    "sigma": 0.5,
    "n0": 100,
    "n": 1000,
    "alpha": 0.001,
    "budget": "fixed",
    "data": "mnist-mini",
    "split": "test",
    "fingerprint": "aa",
}
# (label, predict, radius): right, right, wrong, abstained, right with radius exactly 0.25
FIRST = [(3, 3, 1.0), (1, 1, 0.5), (2, 5, 0.75), (4, -1, 0.0), (0, 0, 0.25)]
SECOND = [(3, 3, 0.7625), (1, -1, 0.0), (2, 2, 0.125), (4, -1, 0.0), (0, 0, 0.0)]


@pytest.fixture(autouse=True)
def radii_by_hand(monkeypatch) -> None:
    """Let the logs below pass though no count gives their radii: the figures can be checked."""
    monkeypatch.setattr(reader, "refuse_other_certificates", lambda *log: None)


def ours(path: Path, certificates=FIRST, first_idx: int = 0, **config) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in (CONFIG | config).items() if value is not None}
    with CertificationLog.create(path, settings) as log:
        for idx, (label, predict, radius) in enumerate(certificates, start=first_idx):
            log.append(Row(idx, label, predict, radius, 1.0, 900, settings.get("n", 1000), 0.5))
    return path


def field(path: Path, certificates=FIRST) -> Path:
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for idx, (label, predict, radius) in enumerate(certificates):
        lines.append(f"{idx}\t{label}\t{predict}\t{radius}\t{int(label == predict)}\t0:00:00.5")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def summary_of(*paths: Path, **options):
    return summarize([read_log(path) for path in paths], **options)


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
    table = paper._table()
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


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"n": 2000}, ["n = 1000", "n = 2000"]),
        ({"alpha": 0.01}, ["alpha = 0.001", "alpha = 0.01"]),
        ({"budget": "anytime"}, ["budget = fixed", "budget = anytime"]),
        ({"data": "mnist"}, ["data = mnist-mini", "data = mnist"]),
        ({"split": "train"}, ["split = test", "split = train"]),
        ({"fingerprint": "bb"}, ["fingerprint = aa", "fingerprint = bb"]),
        ({"n0": 10}, ["n0 = 100", "n0 = 10"]),
    ],
)
@pytest.mark.parametrize("method", ["gaussian", "macer"], ids=["one group", "two groups"])
def test_different_settings_are_not_compared(tmp_path, change, values, method):
    a = ours(tmp_path / "a.tsv")
    b = ours(tmp_path / "b.tsv", method=method, **change)
    with pytest.raises(InputError) as caught:
        summary_of(a, b)
    for part in [str(a), str(b), *values]:
        assert part in str(caught.value)


@pytest.mark.parametrize("method", ["gaussian", "macer"], ids=["one group", "two groups"])
def test_different_ways_to_stop_are_not_compared(tmp_path, method):
    a = ours(tmp_path / "a.tsv", budget="anytime", radius=0.5)
    b = ours(tmp_path / "b.tsv", budget="anytime", tolerance=0.05, method=method)
    with pytest.raises(InputError, match="radius"):
        summary_of(a, b)
    c = ours(tmp_path / "c.tsv", budget="anytime", radius=0.5, method="macer")
    assert len(summary_of(a, c).groups) == 2


def test_different_sigmas_are_different_groups(tmp_path):
    summary = summary_of(ours(tmp_path / "a.tsv"), ours(tmp_path / "b.tsv", sigma=1.0))
    assert [entry.group.sigma for entry in summary.groups] == [0.5, 1.0]


def test_known_and_unknown_settings_stand_side_by_side(tmp_path):
    known = ours(tmp_path / "a.tsv")
    for name, row in (("gaussian", "gaussian_sigma0.50"), ("macer", "macer")):
        summary = summary_of(known, field(tmp_path / f"{name}_sigma0.50_1.tsv"))
        assert [entry.group.method for entry in summary.groups] == ["gaussian", row]
        assert "where they are known" in caption(summary)


def test_known_and_unknown_settings_are_not_averaged_under_one_name(tmp_path):
    logs = [read_log(ours(tmp_path / "a.tsv")), read_log(field(tmp_path / "b_sigma0.50.tsv"))]
    with pytest.raises(InputError, match="cannot average .*its n and alpha are unknown"):
        summarize([dataclasses.replace(log, name="mine") for log in logs])


def test_a_setting_missing_from_one_of_two_seeds_is_refused(tmp_path):
    logs = [ours(tmp_path / "a.tsv"), ours(tmp_path / "b.tsv", budget=None)]
    with pytest.raises(InputError, match="expected budget in both configurations"):
        summary_of(*logs)
    trained = ours(tmp_path / "c.tsv", training={"lambda0": 1.0})
    with pytest.raises(InputError, match="expected training in both configurations"):
        summary_of(logs[0], trained)


def test_different_trainings_are_not_averaged_but_named_by_their_difference(tmp_path):
    training = {"seed": 1, "lambda0": 1.0, "kappa": 100}
    a = ours(tmp_path / "a.tsv", training=training)
    ours(tmp_path / "b.tsv", training=training | {"seed": 2})
    ours(tmp_path / "c.tsv", training=training | {"lambda0": 2.0})
    ours(tmp_path / "d.tsv", sigma=1.0, training=training | {"lambda0": 2.0})
    (together,) = summary_of(a, tmp_path / "b.tsv").groups
    assert len(together.acr) == 2 and together.group.name == "gaussian"
    apart = summary_of(*(tmp_path / f"{name}.tsv" for name in "abcd")).groups
    named = [(entry.group.name, len(entry.acr)) for entry in apart]
    assert named == [("gaussian lambda0=1.0", 2), ("gaussian lambda0=2.0", 1), ("gaussian", 1)]


def test_a_setting_that_one_log_does_not_know_and_the_other_does_not_use_makes_no_difference(
    tmp_path,
):
    older = {"seed": 1, "kappa": 100}
    a = ours(tmp_path / "a.tsv", training=older)
    b = ours(tmp_path / "b.tsv", training=older | {"seed": 2, "tau": None})
    (together,) = summary_of(a, b).groups
    assert len(together.acr) == 2 and together.group.name == "gaussian"
    c = ours(tmp_path / "c.tsv", training=older | {"seed": 2, "tau": 0.5})
    assert len(summary_of(a, c).groups) == 2


@pytest.mark.parametrize(
    ("certificates", "first_idx", "message"),
    [
        (FIRST[:4], 0, r"5 images from 0 to 4\) with .*4 images from 0 to 3"),
        (FIRST, 5, r"5 images from 0 to 4\) with .*5 images from 5 to 9"),
        (
            [(9, 3, 1.0), *FIRST[1:]],
            0,
            "expected one data set, got label 3 and label 9 for image 0",
        ),
    ],
)
@pytest.mark.parametrize("method", ["gaussian", "macer"], ids=["one group", "two groups"])
def test_different_images_are_not_compared(tmp_path, certificates, first_idx, message, method):
    a = ours(tmp_path / "a.tsv")
    b = ours(tmp_path / "b.tsv", certificates, first_idx, method=method)
    with pytest.raises(InputError, match=message):
        summary_of(a, b)


def test_a_log_given_twice_does_not_count_as_two_seeds(tmp_path):
    a = ours(tmp_path / "a.tsv")
    with pytest.raises(InputError, match="given twice"):
        summary_of(a, tmp_path / "." / "a.tsv")


def test_a_copy_of_a_log_does_not_count_as_another_seed(tmp_path):
    logs = [ours(tmp_path / f"{name}.tsv", checkpoint_sha256="abc") for name in "ab"]
    with pytest.raises(InputError, match="expected two networks, got one"):
        summary_of(*logs)


def test_radii_beyond_what_n_and_alpha_allow_are_refused(tmp_path):
    cap = largest_radius(0.5, 1000, 0.001)
    assert summary_of(ours(tmp_path / "a.tsv", [(1, 1, cap)])).images == 1
    with pytest.raises(InputError, match=r"b\.tsv does not fit b\.json: expected radii of at most"):
        summary_of(ours(tmp_path / "b.tsv", [(1, 1, cap * 1.001)]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"sigma": value} for value in ("half", True, [0.5], 1e-300)),
        *({"alpha": value} for value in (1.0, 5e-324, -0.5)),
        *({"n": value} for value in (-5, 10**400)),
    ],
)
def test_a_configuration_that_is_no_number_is_refused(tmp_path, wrong):
    path = ours(tmp_path / "a.tsv")
    (tmp_path / "a.json").write_text(json.dumps(CONFIG | {"budget": "anytime"} | wrong))
    with pytest.raises(InputError, match=r"a\.json: expected \w+ to be a number"):
        summary_of(path)


def test_no_log_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(InputError, match="no log to report"):
        run([])
    with pytest.raises(InputError, match="unknown format 'html': expected one of table, markdown"):
        run([ours(tmp_path / "a.tsv")], format="html")


def test_a_malformed_log_is_refused(tmp_path):
    path = field(tmp_path / "a.tsv")
    path.write_text(path.read_text() + "torn")
    with pytest.raises(InputError, match="line 7 is malformed"):
        run([path])


def test_seeds_that_differ_only_in_how_they_were_computed_are_one_method(tmp_path):
    """Logs of before recorded cuda_graph, which is no part of what is trained."""
    logs = []
    for seed, more in enumerate([{"cuda_graph": True}, {"cuda_graph": False}, {}]):
        path = tmp_path / f"{seed}.tsv"
        path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01\n")
        recorded = {"method": "gaussian", "sigma": 0.5, "n": 100, "alpha": 0.001, "n0": 10}
        training = {"lr": 0.1, "seed": seed, **more}
        path.with_suffix(".json").write_text(json.dumps({**recorded, "training": training}))
        logs.append(path)
    groups = group_logs([read_log(path) for path in logs])
    assert [len(group.logs) for group in groups] == [3]
