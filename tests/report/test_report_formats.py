"""The report as text, for machines, and as a picture."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_logs import FIRST, SECOND, ours, run

from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.report import charts, style, summarize
from drf_fast.report.groups import largest_radius
from drf_fast.report.plot import curve
from drf_fast.report.tables import draw_tables
from drf_fast.runtime.text import rounded_down

CAPTION = (
    "ACR and certified accuracy in % at L2 radius r (pixel units): 5 images of mnist-mini; "
    "n = 1,000, alpha = 0.001; ± is the standard deviation over seeds; shares hold to within 61.6 "
    "points (95 % Clopper-Pearson over images, not over seeds); largest possible radius "
    "sigma*Phi^-1(alpha^(1/n)): 1.232 at sigma = 0.5, reached by no image."
)
TABLE = """\
method    sigma  seeds            ACR  0.00  0.25  0.50  0.75  1.00  abstain
gaussian    0.5      2  0.264 ± 0.122  60.0  40.0  30.0  20.0  10.0     30.0
a_b & c     0.5      1          0.350  60.0  60.0  40.0  20.0  20.0     20.0
"""
MARKDOWN = """\
| method | sigma | seeds | ACR | 0.00 | 0.25 | 0.50 | 0.75 | 1.00 | abstain |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| gaussian | 0.5 | 2 | 0.264 ± 0.122 | 60.0 | 40.0 | 30.0 | 20.0 | 10.0 | 30.0 |
| a_b & c | 0.5 | 1 | **0.350** | 60.0 | **60.0** | **40.0** | 20.0 | **20.0** | 20.0 |
"""
LATEX_ROWS = (
    r"""
gaussian & 0.5 & 2 & 0.264 $\pm$ 0.122 & 60.0 & 40.0 & 30.0 & 20.0 & 10.0 & 30.0 \\
a\_b \& c & 0.5 & 1 & \textbf{0.350} & 60.0 & \textbf{60.0} & \textbf{40.0} & 20.0 & """
    r"""\textbf{20.0} & 20.0 \\
"""
)


pytestmark = pytest.mark.usefixtures("radii_by_hand")


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Two seeds of one method and a log of another."""
    # Without split and fingerprint: the caption names neither.
    unnamed: dict[str, Any] = {"n0": None, "split": None, "fingerprint": None}
    return [
        ours(tmp_path / name, rows, method=method, **unnamed)
        for name, method, rows in (
            ("a.tsv", "gaussian", FIRST),
            ("b.tsv", "gaussian", SECOND),
            ("c.tsv", "a_b & c", FIRST),
        )
    ]


def test_the_table_is_aligned_text_where_there_is_no_terminal(three, capsys):
    assert run(three) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{TABLE}\n{CAPTION}\n" and captured.err == ""


def test_markdown(three, capsys):
    assert run(three, format="markdown") == 0
    assert capsys.readouterr().out == f"{MARKDOWN}\n{CAPTION}\n"


def test_latex_escapes_what_it_must(three, capsys):
    assert run(three, format="latex") == 0
    out = capsys.readouterr().out
    assert LATEX_ROWS in out and r"accuracy in \% at" in out
    assert r"Phi\textasciicircum{}-1" in out
    assert out.count("{tabular}") == 2 and out.count(r"\begin") == out.count(r"\end") == 2


def test_latex_keeps_the_heading_of_each_table():
    tables = [(["method", "sigma", "0"], [["a", "1", "2"]]),
              (["under attack", "sigma", "0"], [["a", "1", "1"]])]  # fmt: skip
    text = draw_tables(tables, "note", "latex")
    assert text.count("method &") == text.count("under attack &") == 1


def test_latex_escapes_what_it_would_set_as_another_character(three, capsys):
    assert run([*three[:2], f"a~b > c | d\\e={three[2]}"], format="latex") == 0
    name = r"a\textasciitilde{}b \textgreater{} c \textbar{} d\textbackslash{}e"
    assert f"\n{name} & 0.5 & 1 & " in capsys.readouterr().out


def test_csv_has_full_precision_and_the_settings(three, capsys):
    assert run(three, format="csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["row"] for row in rows] == ["measured", "lower", "upper"] * 2
    rows = rows[::3]
    assert [row["method"] for row in rows] == ["gaussian", "a_b & c"]
    assert rows[0]["acr"] == "0.263750"
    assert (rows[0]["images"], rows[0]["n"], rows[0]["alpha"]) == ("5", "1000", "0.001")
    assert rows[0]["r0.25"] == "40.000000" and rows[1]["acr_std"] == ""


def test_json_is_for_machines(three, capsys):
    assert run(three, format="json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["caption"] == CAPTION and report["images"] == 5
    assert (report["n"], report["alpha"], report["radii"]) == (1000, 0.001, [0, 0.25, 0.5, 0.75, 1])
    gaussian = report["groups"][0]
    assert gaussian["seeds"] == 2 and gaussian["acr"] == pytest.approx(0.26375)
    assert gaussian["acr_of"] == {
        str(three[0]): pytest.approx(0.35),
        str(three[1]): pytest.approx(0.1775),
    }
    assert gaussian["cap"] == pytest.approx(largest_radius(0.5, 1000, 0.001))
    assert gaussian["paper"] is None


def test_json_is_asked_for_as_of_every_command(three, capsys):
    words = ["report", *map(str, three)]
    assert main([*words, "--format", "json"]) == 0
    expected = capsys.readouterr().out
    assert json.loads(expected)["groups"]
    for flags in (["--json"], ["--json", "--format", "json"]):
        assert main([*words, *flags]) == 0
        assert capsys.readouterr().out == expected
    assert main([*words, "--json", "--format", "csv"]) == 2
    assert "expected one format, got csv too" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "drawn"), [(200, True), (40, False)])
def test_on_a_terminal_no_digit_is_lost_to_its_width(three, monkeypatch, capsys, width, drawn):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(three) == 0
    out = capsys.readouterr().out
    assert ("─" in out) == drawn
    for number in ("0.264 ± 0.122", "40.0", "30.0"):
        assert number in out
    assert "…" not in out


def test_help_and_a_wrong_flag_do_not_wait_for_torch(three):
    code = (
        "import sys; from drf_fast.commands.cli import main; import atexit; "
        "atexit.register(lambda: print('torch' in sys.modules)); main(sys.argv[1:])"
    )
    for words in (["report", "--help"], ["report", str(three[0]), "--format", "html"]):
        command = [sys.executable, "-c", code, *words]
        found = subprocess.run(command, check=False, capture_output=True, text=True)
        assert found.stdout.splitlines()[-1] == "False", found.stderr


# ---------------------------------------------------------------- picture


def test_the_chart_says_what_its_bands_are(three):
    over_images = "95 % Clopper-Pearson intervals over images."
    for logs, bands in (
        (three, f"lowest to highest seed; with one seed, {over_images}"),
        (three[:2], "lowest to highest seed."),
        (three[2:], over_images),
    ):
        summary = summarize([read_log(path) for path in logs])
        assert charts.certified(summary, ()).about.endswith(f" Bands: {bands}")


def test_the_curve_is_the_exact_step_function(three):
    summary = summarize([read_log(path) for path in three[:2]])
    r, mean, lowest, highest = curve(summary.groups[0].group)
    assert r == pytest.approx([0, 0.125, 0.25, 0.5, 0.7625, 1.0], abs=1e-12)
    assert highest.tolist() == [60, 60, 60, 40, 20, 20]
    assert lowest.tolist() == [60, 40, 20, 20, 20, 0]
    assert mean.tolist() == [60, 50, 40, 30, 20, 10]


@pytest.mark.parametrize("name", ["curve.png", "curve.pdf", "curve.svg"])
def test_the_picture_is_written(three, tmp_path, capsys, name):
    assert run(three, format="json", plot=tmp_path / name) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:]])
    captured = capsys.readouterr()
    json.loads(captured.out)  # results only
    assert f"wrote {tmp_path / name}" in captured.err


def test_the_picture_names_each_group_and_its_units(three, tmp_path):
    run(three, plot=tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    for words in ("L2 radius r (pixel units)", "certified accuracy (%)", "σ = 0.5 (ACR 0.264)"):
        assert words in text


def test_a_picture_is_not_overwritten_without_force(three, tmp_path, capsys):
    picture = tmp_path / "curve.png"
    picture.write_text("mine")
    with pytest.raises(InputError, match=r"curve\.png exists.*--force"):
        run(three, plot=picture)
    assert picture.read_text() == "mine" and capsys.readouterr().out == ""
    assert run(three, plot=picture, force=True) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("inches", [5.2, 6.4, 19.2])
@pytest.mark.parametrize(
    "text",
    [
        "mnist-mini (test): attacked within ε = 1",
        "gaps of mnist-mini at σ = 0.5: 1,000 images of the test set, most votes right, 1 noisy "
        "copy of each",
        "form = prox, kappa = 1,024, lambda0 = 0.5, images = 10,000, SmoothAdv + DRF, 8 epochs",
    ],
)
def test_the_title_of_a_figure_fills_its_width_and_leaves_no_lonely_word(text, inches):
    figure, _ = style.figure(inches)
    style.heading(figure, text)
    title: Any = figure.texts[0]  # Matplotlib has no public name for the title of a figure
    lines = title.get_text().split("\n")
    assert " ".join(lines).replace("\N{NO-BREAK SPACE}", " ") == text
    widths = []
    for line in lines:
        title.set_text(line)
        widths.append(title.get_window_extent().width / figure.dpi)
    assert max(widths) <= 0.97 * inches
    title.set_text(text)  # in as few lines as the whole would fill
    whole = title.get_window_extent().width / figure.dpi
    assert len(lines) <= -(-whole // (0.85 * inches))
    assert min(widths) > 0.6 * max(widths)


@pytest.mark.parametrize(
    ("name", "message"),
    [("curve.txt", r"ends in \.png, \.pdf, \.svg, got '\.txt'"), ("absent/a.png", "cannot write")],
)
def test_a_picture_that_cannot_be_written_is_refused(three, tmp_path, capsys, name, message):
    with pytest.raises(InputError, match=message):
        run(three, plot=tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4996, "0.499"), (0.3, "0.300"), (0.0, "0.000"), (12.3456789, "12.345"),
     (float("inf"), "inf"), (1e25, f"{1e25:.3f}")],
)  # fmt: skip
def test_no_radius_is_shown_larger_than_it_is(value, shown):
    assert rounded_down(value, 3) == shown
