"""The report: what it refuses to mix or to read, and what it still averages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from report_logs import CONFIG, FIRST, SECOND, field, ours, run, summary_of

from drf_fast.certification.log import CertificationLog, Row, read_log
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.report import plot, summarize
from drf_fast.report.export import as_dict
from drf_fast.report.groups import group_logs, largest_radius
from drf_fast.report.shards import fullest
from drf_fast.report.tables import caption

pytestmark = pytest.mark.usefixtures("radii_by_hand")


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
    with pytest.raises(InputError, match="cannot average .*its alpha is unknown"):
        summarize([dataclasses.replace(log, name="mine") for log in logs])


def lost(path: Path, counts: Sequence[int] = (1000,), **config) -> Path:
    """One of our logs whose configuration is lost; image i has ``counts[i]`` samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with CertificationLog.create(path, CONFIG | config) as log:
        for idx, (label, predict, radius) in enumerate(FIRST):
            n = counts[idx % len(counts)]
            log.append(Row(idx, label, predict, radius, 1.0, n, n, 0.5))
    path.with_suffix(".json").unlink()
    return path


@pytest.mark.parametrize("names", [("gaussian_seed0", "gaussian_seed1"), ("gaussian", "macer")])
def test_the_samples_of_logs_without_configuration_are_those_of_their_lines(tmp_path, names):
    one, two = (tmp_path / name / "noise_0.50.tsv" for name in names)
    alike = summary_of(lost(one), lost(two, alpha=0.01))
    assert len(alike.groups) == len({name.partition("_")[0] for name in names})
    assert alike.setting("n") == 1000
    assert "n = 1,000, alpha unknown (no configuration beside the logs)" in caption(alike)
    for counts, values in (
        ([100_000], r"\(n = 1000\) with .*\(n = 100000\)"),
        ([500, 1000], r"\(budget = fixed\) with .*\(budget = anytime\)"),
    ):
        two.unlink()
        with pytest.raises(InputError, match=values):
            summary_of(one, lost(two, counts))


def test_the_samples_of_a_log_without_configuration_are_compared_with_a_known_n(tmp_path):
    known = ours(tmp_path / "a.tsv")
    with pytest.raises(InputError, match=r"\(n = 1000\) with .*\(n = 100000\)"):
        summary_of(known, lost(tmp_path / "macer_sigma0.50.tsv", [100_000]))
    beside = summary_of(known, lost(tmp_path / "drf_sigma0.50.tsv"))
    assert "n = 1,000, alpha = 0.001 where they are known" in caption(beside)
    unknown = [lost(tmp_path / "m_sigma0.50_seed0.tsv"), field(tmp_path / "m_sigma0.50_seed1.tsv")]
    with pytest.raises(InputError, match="cannot average .*expected n in both logs, got none"):
        summary_of(*unknown)


def test_a_log_without_configuration_shows_that_it_stopped_early_or_skipped(tmp_path):
    stopped = caption(summary_of(lost(tmp_path / "m_sigma0.50.tsv", [300, 400])))
    assert "n = 400, alpha unknown" in stopped
    assert "budget anytime (n differs between images, the largest is given)" in stopped
    skipped = tmp_path / "m_sigma0.50_seed2.tsv"  # of the wrong image, the third, nothing is known
    lines = lost(skipped).read_text().splitlines(keepends=True)
    lines[3] = "2\t2\t5\t0.000000000000\t0\t0:00:01.000000\t0\t0\t0.000000000000\n"
    skipped.write_text("".join(lines))
    summary = summary_of(skipped)
    assert summary.setting("n") == 1000 and summary.setting("budget") == "fixed"
    assert summary.groups[0].abstained is None
    assert as_dict(summary)["groups"][0]["logs"][0]["abstained"] is None


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


@pytest.mark.parametrize("method", ["gaussian", "macer"], ids=["one group", "two groups"])
def test_logs_of_different_images_are_compared_on_those_that_they_share(tmp_path, capsys, method):
    few = ours(tmp_path / "few.tsv", FIRST[1:3], first_idx=1)
    many = ours(tmp_path / "many.tsv", SECOND, method=method, indices_total=6, skip=1)
    with pytest.raises(InputError, match="report on those that all logs share with --common"):
        run([few, many])
    alone = summary_of(ours(tmp_path / "alone.tsv", SECOND[1:3], first_idx=1)).groups[0]
    summary = summary_of(many, few, common=True)
    assert summary.images == 2 and summary.of_logs == (2, 5) and summary.missing == ()
    assert summary.groups[0].acr[0] == alone.acr_mean == 0.0625  # by hand: (0 + 0.125) / 2
    assert "2 images of mnist-mini (in all logs), n = 1,000" in plot._title(summary)
    assert run([many, few], common=True, details=True) == 0
    shown = capsys.readouterr()
    assert "2 images of mnist-mini, those that all logs share (each holds 2 to 5);" in shown.out
    assert "INCOMPLETE" not in shown.out and "incomplete" not in shown.err
    assert main(["report", str(many), str(few), "--common", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["images_of_logs"] == [2, 5]


def test_common_changes_nothing_where_all_logs_hold_the_same_images(tmp_path):
    paths = [ours(tmp_path / f"{name}.tsv", indices_total=6, skip=1) for name in "ab"]
    alike, common = (summary_of(*paths, common=common) for common in (False, True))
    assert caption(alike) == caption(common) and common.of_logs is None
    assert len(common.missing) == 2


def test_common_refuses_logs_without_common_images_and_with_other_labels(tmp_path):
    a = ours(tmp_path / "a.tsv")
    apart = ours(tmp_path / "b.tsv", first_idx=5)
    with pytest.raises(InputError, match=r"--common leaves no image: .* from 5 to 9"):
        summary_of(a, apart, common=True)
    with pytest.raises(InputError) as caught:
        summary_of(a, apart)
    assert "--common" not in str(caught.value)
    other = ours(tmp_path / "c.tsv", [(3, 3, 1.0), (9, 1, 0.5)])
    with pytest.raises(InputError, match="one data set, got label 1 and label 9 for image 1"):
        summary_of(a, other, common=True)


def test_a_log_given_twice_does_not_count_as_two_seeds(tmp_path):
    a = ours(tmp_path / "a.tsv")
    with pytest.raises(InputError, match="given twice"):
        summary_of(a, tmp_path / "." / "a.tsv")


def test_a_copy_of_a_log_does_not_count_as_another_seed(tmp_path):
    logs = [ours(tmp_path / f"{name}.tsv", checkpoint_sha256="abc") for name in "ab"]
    with pytest.raises(InputError, match="expected two networks, got one"):
        summary_of(*logs)


@pytest.mark.parametrize(
    ("fuller", "less", "taken"),
    [
        ({"n": 2000}, {}, "b.tsv"),
        ({"n": 2000, "certificates": FIRST[:4]}, {}, "a.tsv"),  # images count before n
        ({"n": 2000}, {"alpha": 0.01}, "b.tsv"),
    ],
)
def test_of_the_logs_of_one_network_in_a_folder_one_is_taken(tmp_path, capsys, fuller, less, taken):
    a = ours(tmp_path / "runs" / "one" / "a.tsv", checkpoint_sha256="abc", **less)
    b = ours(tmp_path / "runs" / "one" / "b.tsv", checkpoint_sha256="abc", **fuller)
    other = {**(fuller if taken == "b.tsv" else less), "checkpoint_sha256": "def"}
    ours(tmp_path / "runs" / "two" / "a.tsv", method="macer", **other)
    assert fullest([read_log(a), read_log(b)]).path.name == taken
    left_out = "a.tsv" if taken == "b.tsv" else "b.tsv"
    for folders in ([tmp_path / "runs"], [tmp_path / "runs" / "one", tmp_path / "runs" / "two"]):
        assert run(folders) == 0
        shown = capsys.readouterr()
        (said,) = shown.err.splitlines()
        assert f"one holds several logs of one network: took {taken}, with the most" in said
        assert f"left out {left_out};" in said
        assert "gaussian" in shown.out and "macer" in shown.out
    for words in ([a, b], [tmp_path / "runs" / "one", tmp_path / "runs" / "one" / left_out]):
        with pytest.raises(InputError, match="expected two networks, got one") as caught:
            run(words)
        assert str(a) in str(caught.value) and str(b) in str(caught.value)


def test_copies_of_a_log_in_two_folders_stay_refused(tmp_path):
    for name in "ab":
        ours(tmp_path / name / "log.tsv", checkpoint_sha256="abc")
    with pytest.raises(InputError, match="expected two networks, got one"):
        run([tmp_path])


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
