"""The page of report --html: what is in it, and that it fetches nothing."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from drf_fast import data
from drf_fast.attacks.log import Attacked, AttackRow
from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.report import charts, page
from drf_fast.report.attacks import curves_of
from drf_fast.report.plot import curve
from drf_fast.report.sources import read_all
from drf_fast.report.summary import Summary, certified_accuracy, summarize


def test_it_is_one_file_that_fetches_nothing(written_page):
    text = written_page.read_text()
    assert written_page.stat().st_size < 6e6
    assert "default-src 'none'" in text
    own = text.replace(re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0], "")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", own)
    assert "http://" not in own and "https://" not in own and "@import" not in own


def test_names_are_escaped_everywhere(written_page):
    text = written_page.read_text()
    assert "<b onload" not in text and "&lt;b onload" in text and "\\u0026lt;b onload" in text


def test_it_has_all_parts(written_page):
    text = written_page.read_text()
    for part in (
        "certified", "acr", "p_lower", "table", "training", "training-loss", "training-distance",
        "training-lambda", "gallery", "settings",
    ):  # fmt: skip
        assert f'id="{part}"' in text, part
    assert text.count("<li data-state=") == 30 and "under attack" in text
    assert text.count('<img src="data:image/png;base64,') == 60
    assert "checkpoint_sha256" in text and "environment.torch" in text


def test_the_chart_is_the_curve(page_run):
    log = read_log(page_run / "certificates.tsv")
    summary = summarize([log], paper=False)
    chart = charts.certified(summary, ())
    (line,) = (trace for trace in chart.data if trace.get("name"))
    r, mean, _, _ = curve(summary.groups[0].group)
    shown = dict(zip(line["x"][:-1], line["y"][:-1], strict=True))
    steps = dict(zip(np.round(r, 6).tolist(), np.round(mean, 4).tolist(), strict=True))
    assert {x: shown[x] for x in steps} == steps
    between = [x for x in shown if x not in steps]  # for the mouse: no step of their own
    exact = 100 * certified_accuracy(log, np.array(between))
    assert len(between) > 100 and [shown[x] for x in between] == np.round(exact, 4).tolist()
    assert line["y"][-1] == 0 and line["line"]["shape"] == "vh"  # continuous from the left
    acr = charts.acr(summary)
    ((_, mean_, low, high),) = acr.body
    values = np.where(log.correct, log.radius, 0)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert float(mean_) == pytest.approx(values.mean(), abs=1e-3)
    assert float(high) - float(low) == pytest.approx(2 * error, rel=0.15)


def test_below_a_chart_are_its_numbers(page_run):
    found = read_all([page_run])
    summary = summarize(found.logs, paper=False)
    curves, _ = curves_of(summary, found.attacks)
    chart = charts.certified(summary, curves)
    (entry,) = summary.groups
    ends = (("  from", entry.lower), ("  to", entry.upper))
    for row, (name, shares) in zip(
        chart.body, ((entry.group.label, entry.certified), *ends), strict=True
    ):
        assert row == [name, *(f"{share:.1f}" for share in shares)]
    assert "classified correctly and whose class provably cannot be changed" in chart.about
    assert "the section Table has numbers" in chart.about
    assert "Table" not in charts.certified(summary, ()).about

    rows = [{"epoch": e, "loss": 1 / e} for e in (1, 2, 4)]
    (loss,) = charts.training({"a": rows, "b": rows[:1]})
    assert loss.body == [["a", "1", "1"], ["a", "2", "0.5"], ["a", "4", "0.25"], ["b", "1", "1"]]


def test_of_several_seeds_the_numbers_are_the_lowest_and_the_highest(page_run):
    log = read_log(page_run / "certificates.tsv")
    half = dataclasses.replace(log, radius=log.radius / 2)
    summary = summarize([log], paper=False)
    (entry,) = summary.groups
    seeds = dataclasses.replace(entry, group=dataclasses.replace(entry.group, logs=(half, log)))
    _, (_, *lowest), (_, *highest) = charts.certified(
        dataclasses.replace(summary, groups=(seeds,)), ()
    ).body
    for found, one in ((lowest, half), (highest, log)):
        assert found == [f"{100 * share:.1f}" for share in certified_accuracy(one, summary.radii)]


def test_long_curves_are_thinned_and_keep_their_ends():
    x = np.arange(10_000.0)
    (thin,) = charts._limit_steps(x)
    assert len(thin) == 400 and (thin[0], thin[-1]) == (0, 9999)
    assert charts._limit_steps(x[:7])[0].tolist() == x[:7].tolist()


def test_no_bound_is_rounded_up(page_run):
    summary = summarize([read_log(page_run / "certificates.tsv")], paper=False)
    quantiles = (None, 0.5, 0.7, 0.123456, 0.999999)
    entry = dataclasses.replace(summary.groups[0], p_quantiles=quantiles)
    chart = charts.p_lower(dataclasses.replace(summary, groups=(entry,)))
    assert chart is not None
    assert chart.body[0][1:] == ["-", "0.50000", "0.70000", "0.12345", "0.99999"]


def test_words_say_the_largest_radius_that_half_of_the_images_keep(page_run):
    summary = summarize([read_log(page_run / "certificates.tsv")], paper=False)
    entry = summary.groups[0]
    said = page.words(entry, summary, ())
    kept = [r for r, share in zip(summary.radii, entry.certified, strict=True) if share >= 50]
    assert f"less than {max(kept):g} (L2" in said and f"is {entry.acr_mean:.3f}." in said
    weak = dataclasses.replace(entry, certified=tuple(share / 3 for share in entry.certified))
    share = f"{entry.certified[0] / 3:.1f} %"
    assert f"{share} of the images are certified right." in page.words(weak, summary, ())


@pytest.mark.parametrize(
    ("split", "images"),
    [("test", " test images"), ("train", " training images"), (None, " images"), ([], " images")],
)
def test_words_call_the_images_by_their_split(page_run, split, images):
    log = read_log(page_run / "certificates.tsv")
    log = dataclasses.replace(log, config={**(log.config or {}), "split": split})
    summary = summarize([log], paper=False)
    assert f"over 30{images} of mnist-mini" in page.words(summary.groups[0], summary, ())


def test_title_and_bold_of_several_sigmas(page_run, tmp_path):
    log = read_log(page_run / "certificates.tsv")

    def summary_of(*named: tuple[str, float]) -> Summary:
        logs = [
            dataclasses.replace(
                log, name=name, path=tmp_path / f"{at}.tsv", radius=log.radius * sigma,
                config={**(log.config or {}), "sigma": sigma, "checkpoint_sha256": str(at)},
            )
            for at, (name, sigma) in enumerate(named)
        ]  # fmt: skip
        return summarize(logs, paper=False)

    def bold(summary: Summary) -> str:
        return page._meaning_of_bold(summary, page._tables(summary, ()))

    one, two = summary_of(("a", 1.0)), summary_of(("a", 0.5), ("a", 1.0))
    assert bold(one) == "" and bold(two) == "Bold: the best of a column."
    assert page._title(two) == "a, σ = 0.5, 1"
    weak = dataclasses.replace(log, name="b", path=tmp_path / "b.tsv", radius=log.radius / 2)
    weak = dataclasses.replace(weak, config={**(log.config or {}), "checkpoint_sha256": "b"})
    strong = dataclasses.replace(log, name="a", path=tmp_path / "a.tsv")
    other = dataclasses.replace(
        strong, path=tmp_path / "c.tsv", config={**(log.config or {}), "sigma": 1.0}
    )
    mixed = summarize([strong, weak, other], paper=False)
    assert bold(mixed) == "Bold: the best of a column at its sigma."
    assert page._title(mixed) == "a, σ = 0.5, b, σ = 0.5, a, σ = 1"


def test_training_curves_of_seeds_without_a_recorded_one_are_all_shown(page_run, tmp_path):
    from drf_fast.commands.page import _training

    log = read_log(page_run / "certificates.tsv")
    logs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(page_run / "metrics.jsonl", tmp_path / name)
        logs.append(
            dataclasses.replace(log, config=None, name="m", path=tmp_path / name / "a_sigma0.5.tsv")
        )
    summary = summarize(logs, paper=False)
    assert list(_training(summary)) == ["m, σ = 0.5, first", "m, σ = 0.5, second"]


def test_the_numbers_to_remember_are_those_of_the_words_and_the_report(page_run, tmp_path):
    found = read_all([page_run])
    summary = summarize(found.logs, paper=False)
    attacks, _ = curves_of(summary, found.attacks)
    entry = summary.groups[0]
    shown = dict((name, value) for value, name in page.figures(summary, attacks))
    assert shown["average certified radius"] == f"{entry.acr_mean:.3f}"
    assert shown["right under attack within 1.5, of 10 images"] == f"{attacks[0].correct[-1]:.1f} %"
    assert shown["abstentions"] == f"{entry.abstained:.1f} %" and len(shown) == 4
    said = page.words(entry, summary, attacks)
    assert all(value in said for value in shown.values())
    for suffix in (".tsv", ".json"):
        shutil.copy(page_run / f"certificates{suffix}", tmp_path / f"other{suffix}")
    both = [*found.logs, *read_all([f"other={tmp_path / 'other.tsv'}"]).logs]
    compared = summarize(both, paper=False)
    assert page.figures(compared, ()) == []  # the table compares them
    names = [group.group.name for group in compared.groups]
    assert page._title(compared) == f"{', '.join(names)}, σ = 0.5"
    assert page._title(summary) == f"{entry.group.name}, σ = 0.5"


def test_a_page_in_a_run_folder_is_not_worth_a_word(page_run, written_page, tmp_path):
    shutil.copytree(page_run, tmp_path / "run")
    shutil.copy(written_page, tmp_path / "run" / "page.html")
    assert read_all([tmp_path / "run"]).warnings() == []


def test_a_missing_package_is_one_sentence(page_run, tmp_path, monkeypatch, capsys):
    from drf_fast.commands import page as command

    monkeypatch.setattr(page, "missing", lambda: ["plotly"])
    out = tmp_path / "p.html"
    assert main(["report", str(page_run), "--html", str(out)]) == 2
    assert "pip install plotly" in capsys.readouterr().err and not out.exists()
    assert command.write_beside(tmp_path, [page_run / "certificates.tsv"]) is None
    assert capsys.readouterr().err.count("plotly") == 1  # and train goes on


def test_what_is_said_of_an_attacked_image(page_run):
    from drf_fast.commands.page import _attack_results

    log, images = read_log(page_run / "certificates.tsv"), data.load("mnist-mini", "test")
    network = ("checkpoint_sha256", "fingerprint", "sigma")
    config = {key: (log.config or {})[key] for key in network}
    rows = tuple(
        AttackRow(idx, 2, 0.5, clean, predict, 0.4, "pgd", 0.0)
        for idx, clean, predict in (
            (0, -1, -1), (60, 2, -1), (120, 2, 2), (180, 2, 3), (240, -1, 2), (300, -1, 3),
        )
    )  # fmt: skip

    def said(sigma: float) -> list[str]:
        found = _attack_results(log, sigma, [Attacked(page_run / "a.tsv", config, rows)], images)
        return [text for text, _ in found.values()]

    undecided, changed = "undecided at 0.5", "attacked: 3 at 0.40"
    assert said(0.5) == [undecided, undecided, "withstands 0.5", changed, undecided, changed]
    assert said(1.0) == []  # of an attack at another noise level


def test_only_attacked_images_can_be_filtered_by_what_an_attack_changed(
    page_run, written_page, tmp_path
):
    option = '<option value="changed">'
    assert option in written_page.read_text()
    for suffix in (".tsv", ".json"):
        shutil.copy(page_run / f"certificates{suffix}", tmp_path)
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "p.html")]) == 0
    text = (tmp_path / "p.html").read_text()
    assert 'id="gallery"' in text and option not in text


def test_a_large_picture_keeps_its_noise():
    from drf_fast.commands.page import _source

    noise = 0.1 * torch.randn(3, 224, 100, generator=torch.Generator().manual_seed(0))
    content = base64.b64decode(_source(0.5 + noise).partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(content))) / 255
    assert shown.shape == (56, 25, 3) and shown.std() == pytest.approx(0.1, rel=0.05)
    assert _source(torch.zeros(1, 1000, 2))  # at least one pixel across


def test_a_class_that_the_data_set_lacks_is_shown_by_its_number(page_run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(page_run, copied)
    log = read_log(copied / "certificates.tsv")
    at = int((~log.correct).argmax())  # its label can be another wrong one
    lines = (copied / "certificates.tsv").read_text().splitlines()
    fields = lines[at + 1].split("\t")
    assert not log.correct[at] and fields[1] == str(log.label[at])
    lines[at + 1] = "\t".join([fields[0], "99", *fields[2:]])
    (copied / "certificates.tsv").write_text("\n".join(lines) + "\n")
    assert main(["report", str(copied), "--html", str(tmp_path / "p.html")]) == 0
    assert "true <strong>99</strong>" in (tmp_path / "p.html").read_text()


def test_other_images_than_were_certified_are_not_shown(page_run, tmp_path, capsys):
    copied = tmp_path / "run"
    shutil.copytree(page_run, copied)
    path = copied / "certificates.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))
    assert main(["report", str(copied), "--html", str(tmp_path / "p.html")]) == 0
    assert "holds other images" in capsys.readouterr().err
    assert 'id="gallery"' not in (tmp_path / "p.html").read_text()


def test_bad_names(page_run, tmp_path, capsys):
    assert main(["report", str(page_run), "--html", str(tmp_path / "p.png")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    (tmp_path / "p.html").write_text("mine")
    assert main(["report", str(page_run), "--html", str(tmp_path / "p.html")]) == 2
    assert (tmp_path / "p.html").read_text() == "mine"
    with pytest.raises(InputError, match="ends in"):
        from drf_fast.report.style import check_path

        check_path(tmp_path / "p.txt", False, (".html",))
