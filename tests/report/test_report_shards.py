"""Logs of shards as one log, and what is missing from a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_logs import run

from drf_fast.certification.log import CertificationLog, Row, read_log
from drf_fast.certification.stopping import certificate
from drf_fast.config.certification import shard_of
from drf_fast.config.options import CertifyConfig
from drf_fast.errors import InputError
from drf_fast.report import summarize
from drf_fast.report.shards import join_shards, missing

CONFIG: dict[str, Any] = {
    "method": "gaussian",
    "sigma": 0.5,
    "n0": 100,
    "n": 1000,
    "alpha": 0.001,
    "budget": "fixed",
    "checkpoint_sha256": "aa",
    "skip": 5,
    "max_images": None,
    "indices_total": 9,
    "seed": 0,
    "batch_size": 400,
}


def row(position: int) -> Row:
    count = 1000 - 60 * position  # abstains at the last
    proof = certificate(count, 1000, 1000, sigma=0.5, alpha=0.001, budget="fixed")
    predict = 3 if proof.radius > 0 else -1
    return Row(5 * position, 3, predict, proof.radius, 1.0, count, 1000, proof.p_lower)


def log_of(path: Path, positions: Any, **config: Any) -> Path:
    settings = {key: value for key, value in (CONFIG | config).items() if value is not None}
    with CertificationLog.create(path, settings) as log:
        for position in positions:
            log.append(row(position))
    return path


def shard(folder: Path, number: int, of: int = 3, **config: Any) -> Path:
    name = f"certify-{number}-of-{of}.tsv"
    positions = config.pop("positions", range(9)[number - 1 :: of])
    return log_of(folder / name, positions, shard=f"{number}/{of}", **config)


def report_of(capsys, *paths: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert run(paths, format="json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_shards_of_a_run_in_a_folder_count_as_one_log(tmp_path, capsys):
    for number in (1, 2, 3):
        shard(tmp_path, number)
    assert report_of(capsys, tmp_path)["images"] == 9
    log_of(tmp_path / "few.tsv", range(5), indices_total=5)
    assert report_of(capsys, tmp_path)["images"] == 9
    assert run([tmp_path]) == 0
    said = capsys.readouterr().err
    shards = ", ".join(f"certify-{number}-of-3.tsv" for number in (1, 2, 3))
    assert f"took {shards}, with the most images (then the largest n, " in said
    assert "left out few.tsv;" in said
    shard(tmp_path, 1, of=2)  # of another division: refused as before
    with pytest.raises(InputError, match="cannot join"):
        run([tmp_path])


def test_shards_in_any_order_are_the_log_of_one_process(tmp_path, capsys):
    parts = [shard(tmp_path, number) for number in (2, 3, 1)]
    whole = log_of(tmp_path / "whole.tsv", range(9))
    one, other = report_of(capsys, whole)["groups"], report_of(capsys, *parts)["groups"]
    logs = other[0].pop("logs")
    assert logs[0]["files"] == [str(parts[i]) for i in (2, 0, 1)]
    for entry in (one[0], other[0]):
        assert len(entry.pop("acr_of")) == 1
        entry.pop("logs", None)
    assert one == other
    (joined,) = join_shards([read_log(path) for path in parts])
    assert joined.idx.tolist() == list(range(0, 45, 5)) and missing(joined) is None
    assert joined.count is not None and np.all(np.diff(joined.count) == -60)


def test_shards_of_several_seeds_are_joined_each(tmp_path):
    paths = []
    for seed in "abc":
        (tmp_path / seed).mkdir()
        paths += [shard(tmp_path / seed, i, checkpoint_sha256=seed) for i in (1, 2, 3)]
    (group,) = summarize([read_log(path) for path in paths]).groups
    assert len(group.acr) == 3 and group.acr_std == pytest.approx(0)


def test_a_shard_without_images_is_joined(tmp_path):
    paths = [
        shard(tmp_path, number, 2, positions=positions, indices_total=3)
        for number, positions in ((1, range(3)), (2, []))
    ]
    assert summarize([read_log(path) for path in paths]).images == 3
    with pytest.raises(InputError, match="holds no certificates: .*give its other shards"):
        summarize([read_log(paths[1])])


@pytest.mark.parametrize("format", ["table", "markdown", "latex", "csv", "json"])
def test_missing_shards_and_images_are_named(tmp_path, capsys, format):
    path = shard(tmp_path, 2)
    assert run([path], format=format) == 0
    captured = capsys.readouterr()
    lacks = "certify-2-of-3.tsv lacks shards 1/3, 3/3 and 6 of 9 images (0, 10, 15, 25, 30, ...)"
    assert captured.err == f"warning: incomplete: {lacks}\n"
    assert (f"INCOMPLETE: {lacks}. ACR" in captured.out) == (format != "csv")


def test_missing_images_of_a_log_are_named(tmp_path, capsys):
    report = report_of(capsys, log_of(tmp_path / "a.tsv", [0, 1, 2, 4, 5, 6, 8]))
    assert report["caption"].startswith("INCOMPLETE: a.tsv lacks 2 of 9 images (15, 35). ACR")
    assert report["missing"] == [{"log": str(tmp_path / "a.tsv"), "shards": [], "images": [15, 35]}]
    complete = report_of(capsys, log_of(tmp_path / "b.tsv", range(9)))
    assert complete["missing"] == [] and complete["caption"].startswith("ACR")


def test_all_shards_with_an_image_missing_are_incomplete(tmp_path, capsys):
    paths = [shard(tmp_path, 1), shard(tmp_path, 2, positions=[1, 7]), shard(tmp_path, 3)]
    assert "lacks 1 of 9 images (20)." in report_of(capsys, *paths)["caption"]


def test_how_a_shard_was_computed_may_differ(tmp_path):
    paths = [shard(tmp_path, i, device=f"cpu{i}", environment={"threads": i}) for i in (1, 2, 3)]
    assert summarize([read_log(path) for path in paths]).missing == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "expected shards of one run, got seed 0 and 1"),
        ({"batch_size": 512}, "expected shards of one run, got batch_size 400 and 512"),
        ({"alpha": 0.0011}, "expected shards of one run, got alpha 0.001 and 0.0011"),
        ({"of": 4, "number": 4}, r"\(shard 1/3\) with .* \(shard 4/4\): expected shards of one"),
        ({"positions": [1, 3]}, "shards without common images, got image 15 in both"),
        ({"positions": [1, 9]}, "expected images from 0 to 40 in steps of 5, got image 45"),
        ({"indices_total": "9"}, "got indices_total 9 and 9"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(tmp_path, change, message):
    if "alpha" in change:  # a certificate of its own
        path = shard(tmp_path, 2, positions=[])
        settings = json.loads(path.with_suffix(".json").read_text()) | change
        path.with_suffix(".json").write_text(json.dumps(settings))
    else:
        path = shard(tmp_path, **({"number": 2} | change))
    with pytest.raises(InputError, match=message):
        summarize([read_log(entry) for entry in (shard(tmp_path, 1), path)])


def test_a_shard_given_twice_is_refused(tmp_path):
    (tmp_path / "copy").mkdir()
    paths = [shard(tmp_path, 1), shard(tmp_path / "copy", 1)]
    with pytest.raises(InputError, match=r"expected each shard once, got shard 1/3 twice"):
        summarize([read_log(path) for path in paths])


def test_every_shard_that_certify_can_write_is_read(tmp_path):
    settings = CertifyConfig(shard="999998/999999")
    assert shard_of(settings).suffix == "-shard-999998-of-999999"
    log = read_log(log_of(tmp_path / "a.tsv", [0], shard=settings.shard))
    assert list(join_shards([log])[0].parts) == [999_998]
    for text in ("1000000/1000000", "01/2", "2/1", "1/2 ", "\u0661/2"):
        with pytest.raises(InputError, match="--shard must be i/k"):
            shard_of(CertifyConfig(shard=text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"shard": text}, "expected shard to be 'i/k'") for text in ("0/3", "4/3", "1/0", 1, [])),
        *(({"indices_total": n}, "expected indices_total to be") for n in (0, 1.5, 10**12, "9")),
        *(({"skip": n}, "expected skip to be an integer from 1") for n in (0, True, "5")),
    ],
)
def test_a_configuration_that_names_no_shard_or_images_is_refused(tmp_path, change, message):
    path = log_of(tmp_path / "a.tsv", range(9), **change)
    with pytest.raises(InputError, match=message):
        summarize([read_log(path)])
