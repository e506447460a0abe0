"""Logs of sound certificates: what they say, and that nothing else is mixed with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drf_fast.certification.log import read_log
from drf_fast.certification.stopping import certificate
from drf_fast.commands import cli
from drf_fast.config import training
from drf_fast.runtime.level_table import level_table

SIGMA, ALPHA = 0.5, 0.001


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("sound")
    run = folder / "run"
    train = ["train", "--out", run, "--max-steps", "20", "--train-images", "640"]
    train += ["--certify-images", "0", "--method", "gaussian", "--seed", "1"]
    assert cli.main([*map(str, train)]) == 0
    found = {}
    for sound in (True, False):
        found[sound] = folder / f"{sound}.tsv"
        flags = ["--sound" if sound else "--no-sound", "--out", found[sound]]
        flags += ["--n", "200", "--max-images", "6", "--batch-size", "128"]
        assert cli.main([*map(str, ["certify", run, *flags])]) == 0
    return found


def test_a_log_says_what_it_rests_on(logs):
    settings = json.loads(logs[True].with_suffix(".json").read_text())["sound"]
    assert settings["s"] == 127.5 and settings["tau"] == level_table(0.5).distance
    assert settings["pixels"] == 784 and settings["rows_tested"] >= 256
    assert "Philox" in settings["assumes"]
    assert "sound" not in json.loads(logs[False].with_suffix(".json").read_text())


def test_report_shows_sound_logs_and_never_mixes_them(logs, capsys):
    assert cli.main(["report", str(logs[True])]) == 0
    assert "sound in floating point" in capsys.readouterr().out
    assert cli.main(["report", str(logs[False])]) == 0
    assert "sound" not in capsys.readouterr().out
    assert cli.main(["report", str(logs[True]), str(logs[False])]) == 2
    assert "certified with --sound" in capsys.readouterr().err


def test_report_recomputes_sound_certificates(logs, tmp_path, capsys):
    settings = json.loads(logs[True].with_suffix(".json").read_text())
    settings["sound"]["tau"] = 1e-5
    (tmp_path / "a.tsv").write_text(logs[True].read_text())
    (tmp_path / "a.json").write_text(json.dumps(settings))
    assert cli.main(["report", str(tmp_path / "a.tsv")]) == 2
    assert "is not what its count certifies" in capsys.readouterr().err


def test_sound_certification_refuses_a_sigma_without_a_table(logs, capsys, monkeypatch):
    monkeypatch.setattr(training, "_MOST_SIGMA", 25)
    run = logs[True].parent / "run"
    assert cli.main(["certify", str(run), "--sound", "--sigma", "20", "--out", "x.tsv"]) == 2
    assert "--sound: noise in whole levels needs 0 < sigma <= 16" in capsys.readouterr().err


@pytest.mark.parametrize("radius", ["0.1", None])
@pytest.mark.slow
def test_the_anytime_budget_is_sound_too(logs, tmp_path, radius):
    out = tmp_path / "a.tsv"
    rule = ["--radius", radius] if radius else ["--tolerance", "0.1"]
    flags = ["--sound", "--n", "2000", "--budget", "anytime", *rule, "--max-images", "4"]
    run = [str(logs[True].parent / "run"), "--out", str(out), "--batch-size", "64"]
    assert cli.main(["certify", *run, *flags]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": "anytime"}
    terms["distance"] = 784 * settings["sound"]["tau"]
    log = read_log(out)
    assert log.count is not None and log.n is not None and log.p_lower is not None
    for count, drawn, p_lower in zip(log.count, log.n, log.p_lower, strict=True):
        proof = certificate(int(count), int(drawn), 2000, **terms)
        assert p_lower <= proof.p_lower < p_lower + 1e-11
    assert cli.main(["report", str(out)]) == 0


def test_a_sound_log_goes_on_as_a_sound_log_only(logs, tmp_path, capsys):
    run, out = str(logs[True].parent / "run"), tmp_path / "a.tsv"
    flags = ["certify", run, "--out", str(out), "--n", "200", "--batch-size", "128"]
    whole = logs[True].read_text().splitlines()
    out.write_text("\n".join(whole[:4]) + "\n")
    out.with_suffix(".json").write_text(logs[True].with_suffix(".json").read_text())
    flags += ["--max-images", "6", "--resume"]
    assert cli.main(flags) == 2
    assert "sound" in capsys.readouterr().err
    assert cli.main([*flags, "--sound"]) == 0
    again = out.read_text().splitlines()

    def but_time(lines):
        return [[cell for at, cell in enumerate(line.split("\t")) if at != 5] for line in lines]

    assert but_time(again) == but_time(whole)


@pytest.mark.slow
def test_predict_records_what_it_rests_on(logs, tmp_path, capsys):
    run, out = str(logs[True].parent / "run"), tmp_path / "p.tsv"
    flags = ["predict", run, "--sound", "--n", "100", "--max-images", "3", "--out", str(out)]
    assert cli.main([*flags, "--precision", "bf16"]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())["sound"]
    assert settings["tau"] == level_table(0.5).distance and settings["rows_tested"] >= 256
    assert cli.main([*flags, "--force", "--alpha", "1e-12"]) == 2
    assert "--sound: alpha must be above" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_networks_have_sound_logs_too(logs, tmp_path, capsys):
    run, out = str(logs[True].parent / "run"), tmp_path / "c.tsv"
    flags = ["certify", run, "--sound", "--compile", "--out", str(out), "--n", "200"]
    flags += ["--batch-size", "128"]
    assert cli.main([*flags, "--max-images", "3"]) == 0
    settings = json.loads(out.with_suffix(".json").read_text())
    assert settings["compile"] is True and settings["sound"]["rows_tested"] >= 256
    ordinary = read_log(logs[True])
    compiled = read_log(out)
    assert compiled.count is not None and ordinary.count is not None
    # Rounding may turn a vote where two logits all but agree, here none of 200.
    assert compiled.count.tolist() == ordinary.count[:3].tolist()
    assert cli.main(["report", str(out)]) == 0
    assert "sound in floating point" in capsys.readouterr().out
    assert cli.main(["predict", *flags[1:4], "--n", "100", "--max-images", "2"]) == 0
