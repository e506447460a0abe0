"""Certificates computed again from the counts of a log, and logs damaged at random."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_logs import run

import drf_fast
from drf_fast.certification.log import CertificationLog, Row, read_log
from drf_fast.certification.stopping import certificate
from drf_fast.commands.report import FORMATS
from drf_fast.errors import InputError

CONFIG: dict[str, Any] = {"method": "gaussian", "sigma": 0.5, "n0": 100, "n": 1000, "alpha": 0.001}
COUNTS = [(1000, 3), (990, 3), (551, 3), (540, -1), (999, 4), (0, -1)]  # label 3


def certified(idx: int, count: int, predict: int, **config: Any) -> Row:
    settings: dict[str, Any] = CONFIG | {"budget": "fixed"} | config
    n, trials = settings["n"], settings.get("trials", settings["n"])
    sigma, alpha, budget = (settings[key] for key in ("sigma", "alpha", "budget"))
    proof = certificate(count, trials, n, sigma=sigma, alpha=alpha, budget=budget)
    return Row(idx, 3, predict, proof.radius, 1.5, count, trials, proof.p_lower)


def log_of(path: Path, rows: list[Row], **config: Any) -> Path:
    with CertificationLog.create(path, CONFIG | config) as log:
        for row in rows:
            log.append(row)
    return path


def rows_of(**config: Any) -> list[Row]:
    return [certified(idx, count, said, **config) for idx, (count, said) in enumerate(COUNTS)]


def changed(path: Path, line: int, column: int, value: str) -> Path:
    lines = [text.split("\t") for text in path.read_text().splitlines()]
    lines[line - 1][column] = value
    path.write_text("\n".join("\t".join(fields) for fields in lines) + "\n")
    return path


def test_true_certificates_are_read(tmp_path):
    assert len(read_log(log_of(tmp_path / "a.tsv", rows_of()))) == 6
    wide = {"sigma": 1e6, "n": 100_000}
    assert len(read_log(log_of(tmp_path / "b.tsv", [certified(0, 99_998, 3, **wide)], **wide))) == 1


@pytest.mark.parametrize("writer", ["reference", "auto"])
def test_the_last_bits_of_another_backend_are_no_other_certificate(tmp_path, writer):
    with drf_fast.use_backend(writer):
        rows = [certified(count, count, 3 if count > 549 else -1) for count in range(0, 1001, 8)]
    path = log_of(tmp_path / "a.tsv", rows)
    other = "auto" if writer == "reference" else "reference"
    with drf_fast.use_backend(other):
        assert len(read_log(path)) == 126


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (
            3,
            3,
            "1.060000000000",
            "line 3 .* expected radius 0.989004791070.* for 990 of 1000 samples",
        ),
        (3, 6, "989", r"line 3 .* for 989 of 1000 samples \(a\.json: sigma 0\.5, alpha 0\.001\)"),
        (3, 8, "0.990000000000", "line 3 .* expected p_lower 0.97"),
        (5, 8, "0.100000000000", "line 5 .* expected p_lower 0.4906.*predict -1"),
        (5, 2, "4", "line 5 .* expected radius 0.0000.*got 0.0.* with predict 4"),
        (4, 6, "540", "line 4 .* expected radius 0.0000.*got 0.00.* with predict 3"),
    ],
)
def test_a_certificate_that_its_count_does_not_give_is_refused(
    tmp_path, line, column, value, message
):
    path = changed(log_of(tmp_path / "a.tsv", rows_of()), line, column, value)
    with pytest.raises(InputError, match=message):
        read_log(path)


def test_one_unit_above_in_the_last_decimal_is_refused(tmp_path):
    path = log_of(tmp_path / "a.tsv", rows_of())
    logged = path.read_text().splitlines()[2].split("\t")[3]
    above = f"{float(logged) + 2e-12:.12f}"
    with pytest.raises(InputError, match="line 3 is not what its count certifies"):
        read_log(changed(path, 3, 3, above))


@pytest.mark.parametrize("change", [{"sigma": 0.25}, {"alpha": 0.01}, {"budget": "anytime"}])
def test_the_configuration_of_another_log_is_refused(tmp_path, change):
    path = log_of(tmp_path / "a.tsv", rows_of())
    (tmp_path / "a.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InputError, match=r"line 2 is not what its count certifies"):
        read_log(path)


def test_anytime_certificates_are_computed_from_the_samples_drawn(tmp_path):
    config = {"budget": "anytime", "radius": 0.25}
    rows = [
        certified(0, 200, 3, trials=200, **config),
        certified(1, 990, 3, **config),  # reached n
        certified(2, 60, -1, trials=100, **config),
        Row(3, 3, 5, 0.0, 1.0, 0, 0, 0.0),  # skipped as wrong
    ]
    path = log_of(tmp_path / "a.tsv", rows, skip_wrong=True, **config)
    assert len(read_log(path)) == 4
    with pytest.raises(InputError, match="line 2 is not what its count certifies"):
        read_log(changed(path, 2, 7, "201"))
    with pytest.raises(InputError, match="trials must be at most n, got 1001 of 1000"):
        read_log(changed(path, 2, 7, "1001"))


@pytest.mark.parametrize("budget", ["fixed", "anytime"])
@pytest.mark.parametrize("sigma", [0.12, 0.7])
def test_radii_are_of_the_noise_as_drawn_and_older_ones_of_sigma(tmp_path, sigma, budget):
    of_log = {"sigma": sigma, "budget": budget}
    drawn, above = float(np.float32(sigma)), sigma * (1 + 1e-9)
    assert drawn < sigma
    for level in (drawn, sigma):
        path = log_of(tmp_path / f"{level!r}.tsv", rows_of(**of_log | {"sigma": level}), **of_log)
        assert read_log(path).radius[0] == pytest.approx(rows_of(**of_log)[0].radius)
    with pytest.raises(InputError, match="line 2 is not what its count certifies"):
        read_log(log_of(tmp_path / "a.tsv", rows_of(**of_log | {"sigma": above}), **of_log))


def test_a_wrong_class_that_was_skipped_took_no_samples(tmp_path):
    skipped = Row(1, 3, 5, 0.0, 1.0, 0, 0, 0.0)
    path = log_of(tmp_path / "a.tsv", [*rows_of()[:1], skipped], skip_wrong=True)
    assert read_log(path).correct.tolist() == [True, False]
    with pytest.raises(InputError, match="line 2 .*expected n = 1000 samples, got 0"):
        read_log(log_of(tmp_path / "b.tsv", [skipped]))


# ---------------------------------------------------------------- damaged at random

_ODD = [
    "", " ", "-1", "-2", "0", "1", "1e3", "1e308", "1e-320", "-0.0", "nan", "inf", "0x1f", "1_0",
    "9" * 18, "9" * 19, "9" * 500, "٣", "\x00", "\ufeff0", "…", "0:00:00",
    "999999999 days, 0:00:00", "9" * 30 + ":00:00", "0.5", "2.5e8",
    "[red]", "\x1b[31m", "\r", "\u2028", "'", '"',
]  # fmt: skip
_ODD_SETTINGS: list[Any] = [
    None, True, 0, -1, 1, 1.5, 2, 10**9, 10**30, 1e-300, 1e308, float("inf"), float("nan"), "", "a",
    "1/2", "2/1", "0/0", [], [1], {}, {"a": {"b": []}}, "anytime", "fixed", "[red]x[/red]",
]  # fmt: skip
_KEYS = [
    *CONFIG, "budget", "radius", "tolerance", "data", "split", "fingerprint", "training", "shard",
    "indices_total", "skip", "checkpoint_sha256", "skip_wrong",
]  # fmt: skip


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "field"])
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_log_gives_a_report_or_one_sentence(tmp_path, capsys, seed, ours):
    chance = random.Random(seed)
    good = log_of(tmp_path / "good_sigma0.50.tsv", rows_of()).read_text().splitlines()
    path = tmp_path / "bad_sigma0.50_1.tsv"
    reported = 0
    for _ in range(150):
        lines = [line.split("\t")[: 9 if ours else 6] for line in good]
        for _ in range(chance.choice([0, 0, 1, 2])):
            chance.choice(lines[1:])[chance.randrange(len(lines[0]))] = chance.choice(_ODD)
        path.write_text("\n".join(map("\t".join, lines)) + chance.choice(["\n", ""]))
        config: dict[str, Any] = dict(CONFIG)
        for _ in range(chance.choice([0, 0, 1, 2])):
            config[chance.choice(_KEYS)] = chance.choice(_ODD_SETTINGS)
        (tmp_path / "bad_sigma0.50_1.json").write_text(json.dumps(config))
        if not ours and chance.random() < 0.7:
            (tmp_path / "bad_sigma0.50_1.json").unlink()
        others = [tmp_path / "good_sigma0.50.tsv"] if chance.random() < 0.3 else []
        with contextlib.suppress(InputError):
            shape = chance.choice(FORMATS)
            capsys.readouterr()
            assert run([path, *others], format=shape, details=chance.random() < 0.5) == 0
            reported += 1
            if shape == "json":
                json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    capsys.readouterr()
    assert 10 < reported < 140  # both ends are reached
