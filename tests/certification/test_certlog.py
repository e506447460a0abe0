"""The certification log: what is written, and how it goes on after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written import CONFIG, FIELD, OURS, row, write_log

from drf_fast.certification.log import CertificationLog, format_row, read_log, sidecar, writer
from drf_fast.errors import InputError

# ---------------------------------------------------------------- one line


def test_a_line_has_the_columns_of_the_field_first():
    line = format_row(row(7, radius=0.1, seconds=3723.25))
    assert line.split("\t") == [
        "7",
        "3",
        "3",
        "0.100000000000",
        "1",
        "1:02:03.250000",
        "990",
        "1000",
        "0.979999999999",  # the double nearest to 0.98 lies below it
    ]
    assert OURS.startswith(FIELD.rstrip("\n"))


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=0, max_value=1e9), st.floats(min_value=0, max_value=1))
def test_radius_and_bound_are_never_rounded_up(radius, p_lower):
    fields = format_row(row(0, radius=radius, p_lower=p_lower)).split("\t")
    for text, value in ((fields[3], radius), (fields[8], p_lower)):
        exact, printed = Decimal(value), Decimal(text)
        assert printed <= exact
        assert exact - printed < Decimal("1e-12")
        assert len(text.split(".")[1]) == 12 and "E" not in text


def test_the_double_next_below_a_decimal_is_not_printed_as_it():
    below = float(np.nextafter(2.0, 0.0))
    assert format_row(row(0, radius=below)).split("\t")[3] == "1.999999999999"
    assert format_row(row(0, radius=2.0)).split("\t")[3] == "2.000000000000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00.000000"),
        (0.9999999, "0:00:01.000000"),
        (59.9999996, "0:01:00.000000"),
        (90061.5, "25:01:01.500000"),
    ],
)
def test_times_are_printed_like_those_of_the_field(seconds, text):
    assert format_row(row(0, seconds=seconds)).split("\t")[5] == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": float("nan")}, "radius of 0 or more, got nan"),
        ({"radius": float("inf")}, "finite radius"),
        ({"radius": -0.1}, "radius of 0 or more"),
        ({"radius": 1e10}, "radius of 0 or more, got 10000000000"),
        ({"predict": -1}, "radius 0 for an abstention"),
        ({"predict": -2}, "predict of -1 or more"),
        ({"label": -1}, "label of 0 or more"),
        ({"count": 1001}, "count <= n"),
        ({"n": 0, "count": 0}, "n >= 1"),
        ({"n": 0, "count": 0, "radius": 0.0, "p_lower": 0.0}, "n >= 1 but for a wrong class"),
        ({"p_lower": 1.5}, "p_lower between 0 and 1"),
        ({"seconds": -1.0}, "time of 0 s or more"),
    ],
)
def test_an_impossible_row_is_not_written(tmp_path, changes, message):
    with CertificationLog.create(tmp_path / "a.tsv", CONFIG) as log:
        with pytest.raises(ValueError, match=message):
            log.append(row(5, **changes))
        assert log.done == set()
    assert (tmp_path / "a.tsv").read_text() == OURS


# ---------------------------------------------------------------- writing


def test_what_is_written_is_read_back(tmp_path):
    abstained = row(4, predict=-1, radius=0.0, p_lower=0.3, count=400)
    path = write_log(tmp_path / "certify.tsv", [row(9), row(2, predict=8), abstained])
    log = read_log(path)
    assert log.config == CONFIG and log.path == path and len(log) == 3
    assert log.idx.tolist() == [9, 2, 4] and log.idx.dtype == np.int64
    assert log.correct.tolist() == [True, False, False]
    assert log.radius.tolist() == [9.5, 2.5, 0.0]
    assert log.seconds.tolist() == [1.5, 1.5, 1.5]
    assert log.count is not None and log.count.tolist() == [990, 990, 400]
    assert log.n is not None and log.n.tolist() == [1000] * 3
    assert log.p_lower is not None and np.all(log.p_lower <= [0.98, 0.98, 0.3])
    assert json.loads((tmp_path / "certify.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("certify.tsv", "certify.json"),
        ("gaussian_sigma0.50_1801.tsv", "gaussian_sigma0.50_1801.json"),
        ("noise_0.50", "noise_0.50.json"),  # or noise_0.25 and noise_0.50 would share one
        ("log", "log.json"),
    ],
)
def test_each_log_has_its_own_sidecar(name, expected):
    assert sidecar(Path("runs") / name) == Path("runs") / expected


def test_each_row_is_in_the_file_before_append_returns(tmp_path):
    log = CertificationLog.create(tmp_path / "a.tsv", CONFIG)
    log.append(row(1))
    assert (tmp_path / "a.tsv").read_text() == OURS + format_row(row(1)) + "\n"
    with pytest.raises(ValueError, match="image 1 is in"):
        log.append(row(1))
    log.close()
    log.close()  # closing twice does nothing


def test_nothing_is_overwritten_without_force(tmp_path):
    path = write_log(tmp_path / "a.tsv", [row(1)])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.tsv exists.*--resume.*--force"):
        CertificationLog.create(path, CONFIG)
    assert path.read_bytes() == before
    CertificationLog.create(path, CONFIG | {"seed": 1}, force=True).close()
    assert path.read_text() == OURS and read_json(tmp_path / "a.json")["seed"] == 1

    (tmp_path / "b.json").write_text("{}")  # somebody's file, not a sidecar
    with pytest.raises(InputError, match=r"b\.json exists"):
        CertificationLog.create(tmp_path / "b.tsv", CONFIG)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_force_leaves_a_log_alone_that_is_being_written(tmp_path):
    path = tmp_path / "a.tsv"
    with CertificationLog.create(path, CONFIG) as log:
        log.append(row(1))
        with pytest.raises(InputError, match="being written by another process"):
            CertificationLog.create(path, CONFIG | {"seed": 1}, force=True)
        log.append(row(2))
    assert read_log(path).idx.tolist() == [1, 2] and read_json(sidecar(path)) == CONFIG
    with (
        CertificationLog.create(path, CONFIG, force=True),
        pytest.raises(InputError, match="being written"),
    ):
        CertificationLog.resume(path, CONFIG)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.tsv"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe")
def test_a_log_that_another_process_begins_meanwhile_keeps_its_settings(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"

    def lock_second(at):
        monkeypatch.undo()
        CertificationLog.create(path, CONFIG | {"seed": 1}).close()
        return writer.lock(at)

    monkeypatch.setattr(writer, "lock", lock_second)
    with pytest.raises(InputError, match=r"a\.tsv exists"):
        CertificationLog.create(path, CONFIG | {"seed": 2})
    assert json.loads(sidecar(path).read_text())["seed"] == 1
    CertificationLog.create(path, CONFIG | {"seed": 3}, force=True).close()  # nothing stays locked


def test_what_is_no_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "a.tsv"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"cannot write .*a\.tsv: .* got a pipe"):
        CertificationLog.create(pipe, CONFIG, force=True)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_log_cannot_be_its_own_sidecar(tmp_path):
    with pytest.raises(InputError, match="its own configuration"):
        CertificationLog.create(tmp_path / "a.json", CONFIG)


@pytest.mark.parametrize("place", ["absent/a.tsv", "file/a.tsv"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*writable"):
        CertificationLog.create(tmp_path / place, CONFIG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot write .*permission denied"):
        CertificationLog.create(tmp_path / "a.tsv", CONFIG)


def test_a_configuration_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CertificationLog.create(tmp_path / "a.tsv", {"sigma": float("nan")})
    assert not (tmp_path / "a.tsv").exists()


# ---------------------------------------------------------------- full disk


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_raises_and_the_row_does_not_count():
    log = CertificationLog(Path("/dev/full"), FileIO("/dev/full", "ab"), set())
    with pytest.raises(OSError, match="No space left"):
        log.append(row(1))
    assert log.done == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_a_disk_that_fills_within_a_line_leaves_whole_lines(tmp_path):
    # A file size limit lets the kernel accept a part of a line, as a nearly full disk does.
    code = f"""
import resource, sys
from drf_fast.certification.log import CertificationLog, Row
log = CertificationLog.create({str(tmp_path / "a.tsv")!r}, {CONFIG!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
for idx in range(9):
    try:
        log.append(Row(idx, 3, 3, 0.5, 1.0, 990, 1000, 0.98))
    except OSError:
        print(idx, sorted(log.done))
        break
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "1 [0]\n"
    assert (tmp_path / "a.tsv").read_text().endswith("\n")
    assert read_log(tmp_path / "a.tsv").idx.tolist() == [0]
    with CertificationLog.resume(tmp_path / "a.tsv", CONFIG) as log:
        log.append(row(1))
    assert read_log(tmp_path / "a.tsv").idx.tolist() == [0, 1]


# ---------------------------------------------------------------- resuming


def test_a_log_cut_anywhere_resumes_to_the_same_bytes(tmp_path):
    rows = [row(i) for i in range(3)]
    whole = write_log(tmp_path / "whole.tsv", rows).read_bytes()
    path = write_log(tmp_path / "a.tsv", [])
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with CertificationLog.resume(path, CONFIG) as log:
            complete = max(0, whole[:length].count(b"\n") - 1)
            assert log.done == set(range(complete))
            for entry in rows:
                if entry.idx not in log.done:
                    log.append(entry)
        assert path.read_bytes() == whole


def test_resuming_nothing_begins_a_log(tmp_path):
    with CertificationLog.resume(tmp_path / "a.tsv", CONFIG) as log:
        assert log.done == set()
    assert (tmp_path / "a.tsv").read_text() == OURS and (tmp_path / "a.json").exists()
    (tmp_path / "a.tsv").unlink()  # interrupted between sidecar and log
    with CertificationLog.resume(tmp_path / "a.tsv", CONFIG) as log:
        assert log.done == set()
    assert (tmp_path / "a.tsv").read_text() == OURS


def test_another_configuration_is_refused_and_named(tmp_path):
    path = write_log(tmp_path / "a.tsv", [row(1)], CONFIG | {"ids": (1, 2), "old": 1})
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        CertificationLog.resume(path, CONFIG | {"ids": (1, 2), "n": 2000, "new": None})
    message = str(caught.value)
    assert "n (1000 there, 2000 now)" in message
    assert "old (1 there, absent now)" in message and "new (absent there, null now)" in message
    assert "ids" not in message and "sigma" not in message
    assert path.read_bytes() == before


def test_the_environment_may_change_between_resumes(tmp_path):
    path = write_log(tmp_path / "a.tsv", [row(1)], CONFIG | {"environment": {"threads": 2}})
    with CertificationLog.resume(path, CONFIG | {"environment": {"threads": 64}}) as log:
        assert log.done == {1}


def test_the_environments_of_resumed_runs_are_recorded_in_order(tmp_path):
    path = write_log(tmp_path / "a.tsv", [row(1)], CONFIG | {"environment": {"threads": 2}})
    for threads in (2, 64, 64, 2):
        CertificationLog.resume(path, CONFIG | {"environment": {"threads": threads}}).close()
    config = json.loads(sidecar(path).read_text())
    assert config["environment"] == {"threads": 2}
    assert config["environments_resumed"] == [{"threads": 64}, {"threads": 2}]
    assert read_log(path).config == config


def test_a_refused_resume_leaves_the_sidecar_as_it_was(tmp_path):
    path = write_log(tmp_path / "a.tsv", [], CONFIG | {"environment": {"threads": 2}})
    path.write_text(OURS + "garbage\n")
    before = sidecar(path).read_bytes()
    with pytest.raises(InputError, match="line 2 is malformed"):
        CertificationLog.resume(path, CONFIG | {"environment": {"threads": 64}})
    assert sidecar(path).read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FIELD + "1\t3\t3\t0.5\t1\t0:00:01.5\n", "expected the columns idx label .* p_lower"),
        (OURS + "garbage\n", "line 2 is malformed"),
        (b"\xff\xfe\x00\n", "got UTF-16"),
    ],
)
def test_a_foreign_or_malformed_log_is_not_resumed(tmp_path, content, message):
    path = write_log(tmp_path / "a.tsv", [])
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        CertificationLog.resume(path, CONFIG)


def test_a_log_without_its_sidecar_is_not_resumed(tmp_path):
    path = write_log(tmp_path / "a.tsv", [row(1)])
    sidecar(path).unlink()
    with pytest.raises(InputError, match=r"expected its configuration in .*a\.json"):
        CertificationLog.resume(path, CONFIG)
