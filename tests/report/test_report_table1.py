"""``drf-fast report --table1``: the layout of the paper's Table 1, ours beside the paper's."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from drf_fast.commands.cli import main
from drf_fast.report import paper, table1

FIELD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def log(path: Path, radii: list[float]) -> Path:
    """A log of the field: all images right, with these radii."""
    rows = [f"{i}\t3\t3\t{r}\t1\t0:00:01" for i, r in enumerate(radii)]
    path.write_text(FIELD + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def logs(tmp_path: Path) -> list[str]:
    return [
        str(log(tmp_path / "smoothadv_sigma0.50_1.tsv", [0.3, 0.6, 1.1, 2.0])),
        str(log(tmp_path / "smoothadv_sigma0.50_2.tsv", [0.3, 0.6, 1.1, 1.0])),
        str(log(tmp_path / "gaussian_sigma0.50_1.tsv", [0.1, 0.1, 0.1, 0.1])),
    ]


def test_the_package_holds_all_rows_of_the_paper():
    known = paper.table()
    assert len(known) == 24 and {sigma for sigma, _ in known} == {0.25, 0.5, 1.0}
    assert known[0.25, "smoothadv+drf"].acr == 0.933
    assert known[1.0, "consistency+drf"].certified[2.75] == 20.0
    assert table1.radii() == tuple(0.25 * i for i in range(12))


def test_each_method_of_the_paper_has_its_rows_in_its_order(logs, capsys):
    assert main(["report", *logs, "--table1", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = [(row["row"], row["method"]) for row in rows]
    three = ("measured", "paper", "difference")
    assert names == [
        *((kind, "gaussian") for kind in three),
        *(("paper", method) for method in ("stability", "macer", "smoothmix")),
        *((kind, "smoothadv") for kind in three),
        *(("paper", method) for method in ("smoothadv+drf", "consistency", "consistency+drf")),
    ]
    ours = next(row for row in rows if row["method"] == "smoothadv")
    assert (float(ours["acr"]), ours["seeds"]) == (0.875, "2")  # of 1.0 and 0.75
    assert [float(ours[f"r{r}"]) for r in ("0.25", "0.50", "1.00", "1.25")] == [100, 75, 50, 12.5]
    gap = next(row for row in rows if row["row"] == "difference" and row["method"] == "smoothadv")
    assert float(gap["acr"]) == pytest.approx(0.875 - 1.688)
    assert float(gap["r0.50"]) == pytest.approx(75 - 97.3)


def test_a_difference_of_zero_has_no_sign(tmp_path, capsys):
    near = log(tmp_path / "smoothadv_sigma0.50_1.tsv", [1.6876])  # the paper has 1.688
    assert main(["report", str(near), "--table1"]) == 0
    shown = capsys.readouterr().out
    assert "1.688" in shown and "0.000" in shown and "-0.000" not in shown


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_the_table_for_people_shows_difference_and_terms(logs, capsys, format):
    assert main(["report", *logs, "--table1", "--format", format]) == 0
    out = capsys.readouterr().out
    assert "1.688" in out and "-0.813" in out and "consistency+drf" in out
    assert "Table 1 of Wang, Zhou, Liu (2024)" in out and "n and alpha unknown" in out


def test_json_holds_measured_paper_and_difference(logs, capsys):
    assert main(["report", *logs, "--table1", "--format", "json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows["gaussian"]) == {
        "method", "sigma", "seeds", "measured", "paper", "difference",
    }  # fmt: skip
    assert "measured" not in rows["macer"] and rows["macer"]["paper"]["acr"] == 1.598


def test_logs_unlike_those_of_the_paper_keep_the_plain_layout(logs, capsys):
    assert main(["report", *logs]) == 0
    assert "Table 1" not in capsys.readouterr().out


def test_logs_like_those_of_the_paper_take_its_layout_for_people_only(logs, capsys, monkeypatch):
    monkeypatch.setattr(paper, "_is_comparable", lambda group: True)
    assert main(["report", *logs]) == 0
    assert "Table 1 of Wang" in capsys.readouterr().out
    assert main(["report", *logs, "--format", "json"]) == 0
    assert "groups" in json.loads(capsys.readouterr().out)
    assert main(["report", *logs, "--details"]) == 0
    assert "Table 1 of Wang" not in capsys.readouterr().out


def test_a_method_that_the_paper_lacks_is_shown_without_its_row(logs, tmp_path, capsys):
    other = str(log(tmp_path / "mine_sigma0.50_1.tsv", [0.3, 0.6, 1.1, 2.0]))
    assert main(["report", *logs, other, "--table1", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["row"] for row in rows if row["method"] == "mine"] == ["measured"]


def test_what_has_no_row_or_no_room_is_refused(logs, tmp_path, capsys):
    other = str(log(tmp_path / "mine_sigma0.50_1.tsv", [0.3, 0.6]))
    assert main(["report", other, "--table1"]) == 2
    assert "no log has a row in Table 1" in capsys.readouterr().err
    for flag in ("--details", "--compare", "--no-paper"):
        assert main(["report", *logs, "--table1", flag]) == 2
        assert flag in capsys.readouterr().err
