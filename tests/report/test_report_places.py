"""Where logs lie: odd signs in paths, links, parts, several of one network; and what is shown."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from report_logs import ours, published

from drf_fast.certification.log import read_log
from drf_fast.commands.cli import main
from drf_fast.errors import InputError
from drf_fast.report import paper, summarize, tables
from drf_fast.report.sources import read_all


def test_a_pattern_with_an_equals_sign_or_a_tilde_is_a_path(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in ("1", "2"):
        published(tmp_path / "s" / f"lambda0={value}" / "m_sigma0.50.tsv")
    published(tmp_path / "other" / "o_sigma0.50.tsv")
    for word in ("~/s/lambda0=*/m*.tsv", "s/lambda0=*/m*.tsv"):
        assert [log.path.parent.name for log in read_all([word]).logs] == ["lambda0=1", "lambda0=2"]
        assert {log.name for log in read_all([word]).logs} == {None}
    for word in ("s/lambda3=other/o_sigma0.50.tsv", "./x=other", "~/x=other"):
        with pytest.raises(InputError, match="=other"):
            read_all([word])
    (named,) = read_all(["mine=other"]).logs
    assert named.name == "mine"


def test_a_tilde_without_a_home_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "~nobody-has-this-name_sigma0.50.tsv")
    (log,) = read_all(["~nobody-has-this-name_sigma0.50.tsv"]).logs
    assert len(log) == 4


def test_parts_of_an_unfinished_log_are_no_logs(tmp_path):
    whole = published(tmp_path / "certificates.tsv")
    shutil.copy(whole, tmp_path / "certificates.tsv.part-0")
    assert [log.path for log in read_all([tmp_path]).logs] == [whole]


def test_links_keep_their_names(tmp_path):
    for seed in (880, 881):
        blob = published(tmp_path / "blobs" / f"{seed * 7919:x}")
        link = tmp_path / "m" / f"noise_0.50_{seed}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(blob)
    (row,) = summarize([read_log(path) for path in (tmp_path / "m").iterdir()]).groups
    assert (row.group.name, row.group.sigma, len(row.acr)) == ("m", 0.5, 2)


@pytest.mark.usefixtures("radii_by_hand")
def test_a_pattern_of_folders_takes_one_log_of_each_network(tmp_path):
    for name in ("a", "b"):
        config: Any = {"checkpoint_sha256": name, "method": name}
        ours(tmp_path / name / "certificates.tsv", **config)
        ours(tmp_path / name / "more.tsv", **config, budget="anytime", radius=0.1)
    found = read_all([f"{tmp_path}/*"])
    assert [log.path.name for log in found.logs] == 2 * ["certificates.tsv"]
    assert len(found.choices) == 2
    assert len(read_all([f"{tmp_path}/*/*.tsv"]).logs) == 4  # each is named


@pytest.mark.usefixtures("radii_by_hand")
def test_of_equal_logs_one_that_did_not_stop_early_stands_for_the_network(tmp_path):
    names = ("a-stopped.tsv", "b-whole.tsv")
    ours(tmp_path / names[0], checkpoint_sha256="x", budget="anytime", radius=0.1)
    ours(tmp_path / names[1], checkpoint_sha256="x")
    assert [log.path.name for log in read_all([tmp_path]).logs] == ["b-whole.tsv"]


@pytest.mark.usefixtures("radii_by_hand")
def test_skipped_images_hide_abstentions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    skipping = ours(Path("s.tsv"), method="skipping", skip_wrong=True)
    whole = ours(Path("w.tsv"), method="whole")
    both = summarize([read_log(whole), read_log(skipping)], compare_groups=True)
    assert both.groups[0].abstained == pytest.approx(20) and both.groups[1].abstained is None
    for words in ([], ["--compare"], ["--format", "json", "--compare"], ["--format", "csv"]):
        assert main(["report", str(whole), str(skipping), *words]) == 0
        assert "nan" not in capsys.readouterr().out.lower()
    assert main(["report", str(skipping), "--html", str(tmp_path / "p.html")]) == 0
    text = (tmp_path / "p.html").read_text()
    assert "abstains on" not in text and ">abstentions<" not in text
    assert "abstentions of methods certified with --skip-wrong are unknown" in text


def test_names_that_are_no_utf_8_are_written_as_numbers(tmp_path):
    name = b"caf\xe9_sigma0.50.tsv".decode("utf-8", "surrogateescape")
    try:
        path = published(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    page, figure = tmp_path / "p.html", tmp_path / "p.png"
    assert main(["report", str(path), "--html", str(page), "--plot", str(figure)]) == 0
    assert "caf\\udce9" in page.read_text() and figure.stat().st_size > 0


@pytest.mark.usefixtures("radii_by_hand")
def test_the_layout_of_table_1_can_be_declined(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper, "_is_mnist_test", lambda log: True)
    path = ours(tmp_path / "c.tsv", data="mnist", n=100_000)
    shown = []
    for flags in ([], ["--table1"], ["--no-table1"]):
        assert main(["report", str(path), *flags]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.usefixtures("radii_by_hand")
def test_the_largest_radius_of_sound_logs_is_theirs(tmp_path):
    plain = ours(tmp_path / "p.tsv")
    sound = ours(tmp_path / "s.tsv", sound={"s": 127.5, "tau": 1e-9, "pixels": 10**6})
    caps = []
    for path in (plain, sound):
        summary = summarize([read_log(path)])
        caps.append(summary.groups[0].group.cap)
        assert ("alpha^(1/n)" in tables.caption(summary)) == (path == plain)
    assert 0 < caps[1] < caps[0] - 1e-3
