"""Logs as people have them: other layouts, other columns, other names, other files beside them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from report_logs import HEADER, published, run

from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.report import summarize

CONFIG = {"sigma": 0.5, "n": 1000, "alpha": 0.001, "budget": "fixed", "data": "mnist-mini"}


def predictions(path: Path, predicts=(3, 3, -1, 4), time: bool = False) -> Path:
    lines = ["idx\tlabel\tpredict\tcorrect" + "\ttime" * time]
    for i, predict in enumerate(predicts):
        lines.append(f"{i}\t3\t{predict}\t{int(predict == 3)}" + "\t0:00:00.5" * time)
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(*paths: Path) -> list[tuple[str, float | None, int]]:
    summary = summarize([read_log(path) for path in paths])
    return [(entry.group.name, entry.group.sigma, len(entry.acr)) for entry in summary.groups]


# ---------------------------------------------------------------- which logs share a row


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["A/noise_0.25/test/sigma_0.25", "B/noise_0.50/test/sigma_0.50"],
            [("A", 0.25, 1), ("B", 0.5, 1)],
        ),
        (
            ["cohen/r20/noise_0.50_5", "salman/pgd_512/r20/noise_0.50_14"],
            [("cohen", 0.5, 1), ("salman", 0.5, 1)],
        ),
        (
            [f"{m}/r110/noise_{s}/test/sigma_{s}" for m in ("a", "b") for s in ("0.25", "0.50")],
            [("a", 0.25, 1), ("a", 0.5, 1), ("b", 0.25, 1), ("b", 0.5, 1)],
        ),
        (
            ["m/noise_0.25/test/sigma_0.50", "m/noise_0.50/test/sigma_0.50"],
            [("noise_0.25", 0.5, 1), ("noise_0.50", 0.5, 1)],
        ),
        (["m/noise_0.50_1", "m/noise_0.50_2", "m/noise_0.50_31"], [("m", 0.5, 3)]),
        (["m/seed_0/sigma_0.5", "m/seed_1/sigma_0.5"], [("m", 0.5, 2)]),
        (["m_sigma0.5_seed3.tsv", "m_sigma0.5_seed4.tsv"], [("m", 0.5, 2)]),
        # A number that nothing calls a seed may be of steps or of an epoch.
        (["steps_2.tsv", "steps_8.tsv"], [("steps_2", None, 1), ("steps_8", None, 1)]),
        (
            ["m/pgd_2/noise_0.5_1", "m/pgd_2/noise_0.5_2", "m/pgd_8/noise_0.5_1"],
            [("pgd_2", 0.5, 2), ("pgd_8", 0.5, 1)],
        ),
        (["m/x.tsv", "m/n/x.tsv"], [("m", None, 1), ("n", None, 1)]),
        (
            ["m/a/noise_0.5", "m/b/noise_0.5", "m/seed0/noise_0.5", "m/seed1/noise_0.5"],
            [("a", 0.5, 1), ("b", 0.5, 1), ("m", 0.5, 2)],
        ),
    ],
)
def test_only_logs_that_differ_in_a_seed_share_a_row(tmp_path, names, expected):
    assert rows(*(published(tmp_path / name) for name in names)) == expected


def test_the_table_says_how_many_logs_are_averaged(tmp_path, capsys):
    for seed, radius in ((1, 0.2), (2, 0.4)):
        published(tmp_path / "m" / f"noise_0.50_{seed}", radius)
    published(tmp_path / "n" / "noise_0.50", 0.9)
    assert run([str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:6] == ["m", "0.5", "2", "0.300", "±", "0.141"]
    assert lines[2][:4] == ["n", "0.5", "1", "0.900"]


def test_foreign_checkpoints_of_two_folders_are_two_rows(tmp_path):
    paths = []
    for folder in ("cohen", "salman"):
        path = published(tmp_path / folder / "certify-s0.5-n1000.tsv")
        (path.with_suffix(".json")).write_text(json.dumps(CONFIG | {"method": "foreign"}))
        paths.append(path)
    assert rows(*paths) == [("cohen", 0.5, 1), ("salman", 0.5, 1)]


def test_foreign_checkpoints_of_one_folder_are_two_rows(tmp_path):
    paths = [published(tmp_path / f"{name}-certify-s0.5-n1000.tsv") for name in ("best", "last")]
    for path in paths:
        path.with_suffix(".json").write_text(json.dumps(CONFIG | {"method": "foreign"}))
    assert rows(*paths) == [("best", 0.5, 1), ("last", 0.5, 1)]


def test_a_row_is_named_by_the_user(tmp_path, capsys):
    published(tmp_path / "a" / "x_sigma0.50.tsv")
    for number in (1, 2):
        published(tmp_path / "logs" / f"run{number}_sigma0.50.tsv")
    words = [f"gaussian={tmp_path / 'a'}", f"smoothadv={tmp_path / 'logs' / '*.tsv'}"]
    assert main(["report", *words, "--format", "json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [(g["method"], g["seeds"]) for g in groups] == [("gaussian", 1), ("smoothadv", 2)]


def test_an_equals_sign_in_a_path_is_no_name(tmp_path, capsys):
    path = published(tmp_path / "lr=0.1" / "m_sigma0.50.tsv")
    for word in (path, path.parent, tmp_path / "lr=*" / "m*"):
        assert run([str(word)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "m"


# ---------------------------------------------------------------- what a log may hold


@pytest.mark.parametrize("time", ["15.4", "3", "1e-2", "0:00:15.4"])
def test_a_time_may_be_plain_seconds(tmp_path, time):
    log = read_log(published(tmp_path / "sigma_0.50", time=time))
    assert log.seconds[0] == (15.4 if ":" in time else float(time))


def test_running_totals_are_computed_again_with_a_warning(tmp_path, capsys):
    path = tmp_path / "sigma_0.50"
    # Right, wrong, right: after two images the total is still 1.
    path.write_text(HEADER + "0\t3\t3\t1\t1\t1\n1\t3\t4\t1\t1\t1\n2\t3\t3\t1\t2\t1\n")
    log = read_log(path)
    assert log.correct.tolist() == [True, False, True]
    (warning,) = log.warnings
    assert "got running totals: computed again" in warning
    assert run([path]) == 0
    assert f"warning: {path}: expected correct to be 0 or 1" in capsys.readouterr().err
    path.write_text(HEADER + "0\t3\t3\t1\t1.0\t1\n1\t3\t4\t1\t0.5\t1\n")
    assert read_log(path).correct.tolist() == [True, False] and read_log(path).warnings


def test_running_totals_of_zero_and_one_are_seen_too(tmp_path):
    path = tmp_path / "sigma_0.50"
    path.write_text(HEADER + "0\t3\t4\t0.1\t0\t1\n1\t3\t3\t0.1\t1\t1\n2\t3\t4\t0.1\t1\t1\n")
    assert read_log(path).correct.tolist() == [False, True, False] and read_log(path).warnings
    path.write_text(path.read_text().replace("2\t3\t4\t0.1\t1", "2\t3\t3\t0.1\t0"))
    with pytest.raises(InputError, match="line 4 .*got correct 0, label 3, predict 3"):
        read_log(path)


def test_a_mark_before_the_text_and_windows_line_ends_are_read(tmp_path, capsys):
    path = published(tmp_path / "m_sigma0.50.tsv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_log(path)) == 4
    assert run([str(tmp_path)]) == 0  # and found in a folder
    assert "0.300" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{HEADER}0\t3\t3\t0.3\t1\t1\n".replace("\t", ","),
            "got 'idx,label,.*; write it with these",
        ),
        (
            "idx\tpredict\tlabel\tradius\tcorrect\ttime\n",
            r"got 'idx\\tpredict.*; write it with these",
        ),
        (f"{HEADER}0\t3\t3\t0.3\t1\t1\n".replace("\n", "\r"), r"got 'idx\\tlabel.*time\\r0\\t3"),
        ("0.0\t0.99\n", r"got '0\.0\\t0\.99'; check the path"),
        (f"{HEADER}0\t3\t3\t0,3\t1\t1\n", "expected a number with a decimal point, got '0,3'"),
        (f"{HEADER}0\t3\t-1\t-1\t0\t1\n", "expected radius 0 for an abstention .* got -1.0"),
        (f"{HEADER}0\t3\t-1\tnan\t0\t1\n", "expected radius 0 for an abstention .* got nan"),
        (f"{HEADER}0\t3\t3\tnan\t1\t1\n", "finite radius.*; restore or correct the log"),
        (
            gzip.compress(HEADER.encode(), mtime=0),
            "expected UTF-8 text, got a gzip file; unpack it",
        ),
        (b"PK\x03\x04\xff", "expected UTF-8 text, got a zip file; unpack it"),
        (HEADER.encode("utf-16"), "expected UTF-8 text, got UTF-16; save it as UTF-8"),
        (b"\xff\x00", "expected UTF-8 text, got binary data; check the path"),
    ],
)
def test_what_cannot_be_read_is_explained_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "m_sigma0.50.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_log(path)
    assert not set("\n\r\t") & set(str(caught.value))


def test_radii_and_a_sigma_of_different_units_are_pointed_out(tmp_path, capsys):
    words = "m at sigma = 0.5 has a radius of 255 sigma"
    for radius, said in (("127.5", True), ("4", False)):
        assert run([published(tmp_path / "m_sigma0.50.tsv", float(radius))]) == 0
        assert (words in capsys.readouterr().out) == said


# ---------------------------------------------------------------- what lies beside logs


def test_a_packed_log_in_a_folder_is_named(tmp_path, capsys):
    path = published(tmp_path / "m_sigma0.50_seed1.tsv")
    (tmp_path / "m_sigma0.50_seed2.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "labels.gz").write_bytes(gzip.compress(b"data"))
    (tmp_path / "torn.gz").write_bytes(b"\x1f\x8b\x08\x00")
    assert run([tmp_path]) == 0
    err = capsys.readouterr().err
    assert "skipped 1 file that is no log:" in err and "seed2.tsv.gz; to report on a packed" in err


def test_a_copy_without_configuration_is_pointed_out(tmp_path, capsys):
    one = published(tmp_path / "m_sigma0.50_seed1.tsv")
    two = published(tmp_path / "m_sigma0.50_seed2.tsv")
    assert run([one, two]) == 0
    assert f"warning: {one} and {two} have the same lines: if one is" in capsys.readouterr().err
    published(two, time="0:00:02")
    assert run([one, two]) == 0
    assert capsys.readouterr().err == ""


def test_other_files_of_a_folder_are_named_and_skipped(tmp_path, capsys):
    published(tmp_path / "m" / "noise_0.50")
    accuracy = tmp_path / "m" / "noise_0.50_acc"
    accuracy.write_text("0.00000\t0.99450\n")
    (tmp_path / "m" / "picture.png").write_bytes(b"\x89PNG")
    for word in (tmp_path, tmp_path / "m" / "*"):
        assert run([str(word)]) == 0
        err = capsys.readouterr().err
        assert "skipped 1 file that is no log:" in err and str(accuracy) in err
        assert "picture" not in err
    with pytest.raises(InputError, match="is not a certification log"):
        run([str(accuracy)])


def test_the_tables_of_a_sweep_are_no_surprise(tmp_path, capsys):
    published(tmp_path / "m" / "noise_0.50")
    for name in ("runs.tsv", "summary.tsv"):
        (tmp_path / name).write_text("lambda0\tACR\n")
    assert run([str(tmp_path)]) == 0
    assert "skipped 2 files that are no logs:" in capsys.readouterr().err  # of somebody else
    (tmp_path / "sweep.json").write_text("{}")
    assert run([str(tmp_path)]) == 0
    assert "skipped" not in capsys.readouterr().err


def test_a_damaged_log_in_a_folder_is_no_other_file(tmp_path):
    published(tmp_path / "m_sigma0.50.tsv").open("a").write("torn\n")
    with pytest.raises(InputError, match="line 6 is malformed"):
        run([str(tmp_path)])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (".", "holds no log: expected files with the header of certify or predict"),
        ("*.tsv", "matches no file"),
        ("gone.tsv", "cannot read"),
        ("mine=gone.tsv", "cannot read gone.tsv"),
        ("mine=", "expected PATH or NAME=PATH"),
        ("=a.tsv", "expected PATH or NAME=PATH"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, word, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        run([word])


# ---------------------------------------------------------------- logs of predict


@pytest.mark.parametrize("time", [False, True])
def test_predictions_have_an_accuracy_and_no_radius(tmp_path, capsys, time):
    path = predictions(tmp_path / "m_sigma0.50.tsv", time=time)
    assert run([path]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["method", "sigma", "seeds", "accuracy", "abstain"]
    assert out[1].split() == ["m", "0.5", "1", "50.0", "25.0"]
    assert out[3].startswith("accuracy of the smoothed classifier in %")
    assert run([path], format="json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predictions"] and found["groups"][0]["acr"] is None
    assert found["groups"][0]["certified_accuracy"] == [50.0]


def test_predictions_are_compared_and_detailed_and_never_mixed(tmp_path, capsys):
    first = predictions(tmp_path / "a_sigma0.50.tsv")
    second = predictions(tmp_path / "b_sigma0.50.tsv", (3, 3, 3, 4))
    for format in ("table", "markdown", "latex", "csv", "json"):
        assert run([first, second], compare=True, details=True, envelope=True, format=format) == 0
    assert "+25.0" not in capsys.readouterr().err
    with pytest.raises(InputError, match="certificates.*predictions.*report them separately"):
        run([first, published(tmp_path / "c_sigma0.50.tsv")])
    with pytest.raises(InputError, match="--plot is for certificates"):
        run([first], plot=tmp_path / "a.png")
    with pytest.raises(InputError, match="--radii is for certificates"):
        run([first], radii="0.5")


# ---------------------------------------------------------------- what the table shows


def test_radii_of_the_users_choice(tmp_path, capsys):
    path = published(tmp_path / "m_sigma0.50.tsv", 0.5)
    assert main(["report", str(path), "--radii", "0.125,0.5,1"]) == 0
    header, row = (line.split() for line in capsys.readouterr().out.splitlines()[:2])
    assert header[4:7] == ["0.125", "0.50", "1.00"] and row[4:7] == ["100.0", "100.0", "0.0"]


@pytest.mark.parametrize("radii", ["", "a", "0.5,,1", "-1", "nan", "inf", "1,1.0"])
def test_radii_that_are_none_are_refused(tmp_path, radii):
    with pytest.raises(InputError, match="--radii must be different numbers of 0 or more"):
        run([tmp_path / "absent.tsv"], radii=radii)  # before anything is read


def test_the_best_of_each_column_is_bold(tmp_path, capsys):
    low, high = tmp_path / "low_sigma0.50", tmp_path / "high_sigma0.50"
    published(low, 0.3)
    published(high, 0.6)
    assert run([low, high], format="markdown") == 0
    rows_ = capsys.readouterr().out.splitlines()
    assert rows_[2] == "| low | 0.5 | 1 | 0.300 | 100.0 | 100.0 | 0.0 | 0.0 |"
    assert rows_[3] == "| high | 0.5 | 1 | **0.600** | 100.0 | 100.0 | **100.0** | 0.0 |"
    assert run([low, high], format="latex") == 0
    assert r"\textbf{0.600} & 100.0 & 100.0 & \textbf{100.0}" in capsys.readouterr().out
    assert run([low, high]) == 0
    assert "*" not in capsys.readouterr().out.splitlines()[2]


def test_each_sigma_has_its_best(tmp_path, capsys):
    paths = [
        published(tmp_path / f"{name}_sigma{sigma}", radius)
        for name, sigma, radius in (("a", 0.25, 0.1), ("b", 0.25, 0.2), ("a", 0.5, 0.4))
    ]
    assert run(paths, format="markdown") == 0
    marked = [line.count("**0.") for line in capsys.readouterr().out.splitlines()[2:5]]
    assert marked == [0, 1, 0]  # alone at sigma 0.5 there is nothing to be better than
    assert run(paths[1:], format="markdown") == 0  # one row at each sigma: all compete
    assert "**0.400**" in capsys.readouterr().out


def test_the_envelope_is_the_best_at_each_radius(tmp_path, capsys):
    many, far = tmp_path / "many_sigma0.25", tmp_path / "far_sigma0.50"
    many.write_text(HEADER + "".join(f"{i}\t3\t3\t0.3\t1\t1\n" for i in range(4)))
    far.write_text(
        HEADER + "".join(f"{i}\t3\t{3 - i // 2}\t0.6\t{1 - i // 2}\t1\n" for i in range(4))
    )
    assert run([many, far], envelope=True) == 0
    row = capsys.readouterr().out.splitlines()[3]
    assert row.startswith("best at each radius") and row.split()[4:] == ["100.0", "100.0", "50.0"]
    assert run([many, far], envelope=True, format="json") == 0
    found = json.loads(capsys.readouterr().out)["envelope"]
    assert found["certified_accuracy"] == [100.0, 100.0, 50.0]
    assert [of["method"] for of in found["of"]] == ["many", "many", "far"]
    assert run([many, far], envelope=True, format="csv") == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert len({len(line) for line in lines}) == 1 and lines[-1][-3:] == ["100.000000"] * 2 + [
        "50.000000"
    ]


def test_compare_says_which_rows_it_compares(tmp_path, capsys):
    paths = [published(tmp_path / f"{name}_sigma0.50") for name in "abc"]
    assert run(paths, compare=True) == 0
    out = capsys.readouterr().out
    assert "compared with a at sigma = 0.5: b at sigma = 0.5, c at sigma = 0.5" in out
