"""Certification logs, ours and the field's, as they are read; what is refused, and how."""

from __future__ import annotations

import json

import pytest
from written import CONFIG, FIELD, OURS, row, write_log

from drf_fast.certification.log import read_log
from drf_fast.errors import InputError


def test_a_log_of_the_field_is_read(tmp_path):
    path = tmp_path / "noise_0.50"
    path.write_text(
        FIELD
        + "0\t7\t7\t1.87\t1\t0:00:01.397021\n"
        + "20\t2\t-1\t0.0\t0\t1 day, 1:00:00\n"
        + "40\t1\t1\t7.1e-05\t1\t0:00:00.5\textra\n"
    )
    log = read_log(path)
    assert log.config is None and log.count is None and log.n is None and log.p_lower is None
    assert log.idx.tolist() == [0, 20, 40] and log.radius.tolist() == [1.87, 0.0, 7.1e-05]
    assert log.seconds.tolist() == [1.397021, 90000.0, 0.5]


def test_columns_after_the_known_ones_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(
        b"idx\tlabel\tpredict\tradius\tcorrect\ttime\tnote\r\n0\t7\t7\t1.5\t1\t0:00:01\thello\r\n\r\n"
    )
    assert read_log(path).radius.tolist() == [1.5]


GOOD = "0\t7\t7\t1.87\t1\t0:00:01.397021\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: expected a certification log"),
        ("\n\n", "is empty"),
        (FIELD, "holds no certificates"),
        (GOOD, "expected the tab-separated header"),
        ("0.00000\t0.99450\n", "expected the tab-separated header"),
        (FIELD.replace("\t", ",") + GOOD, "expected the tab-separated header"),
        (FIELD + GOOD + "1\t7\t7\n", "line 3 is malformed: expected 6 fields, got 3"),
        (FIELD + GOOD + "\n" + GOOD, "line 3 is malformed: expected 6 fields, got 1"),
        (FIELD + GOOD + GOOD, r"line 3 .*got idx 0 again \(first in line 2\)"),
        (FIELD + GOOD.replace("1.87", "nan"), "line 2 .*radius of 0 or more, got nan"),
        (FIELD + GOOD.replace("1.87", "inf"), "line 2 .*finite radius"),
        (FIELD + GOOD.replace("1.87", "-0.5"), "line 2 .*radius of 0 or more, got -0.5"),
        (FIELD + GOOD.replace("1.87", "wide"), "line 2 .*expected a number, got 'wide'"),
        (FIELD + GOOD.replace("1.87", "1_8"), "line 2 .*expected a number, got '1_8'"),
        (FIELD + GOOD.replace("1.87", "1e300"), r"line 2 .*radius of 0 or more, got 1e\+300"),
        (FIELD + GOOD.replace("0\t7", "1_0\t7"), "line 2 .*an integer of at most 18 digits"),
        (FIELD + GOOD.replace("0\t7", f"{10**18}\t7"), "line 2 .*an integer of at most 18"),
        (FIELD + GOOD.replace("7\t7", f"{'7' * 5000}\t7"), "line 2 .*got '7{40}'"),
        (FIELD + GOOD.replace("0\t7", "\u0663\t7"), "line 2 .*an integer of at most 18 digits"),
        (FIELD + GOOD.replace("0:00:01", f"{10**9} days, 0:00:01"), "line 2 .*expected a time"),
        (FIELD + GOOD.replace("0:00:01", f"{10**400}:00:01"), "line 2 .*expected a time"),
        (FIELD + GOOD.replace("7\t7\t", "7\t8\t"), "line 2 .*correct 1, label 7, predict 8"),
        (FIELD + GOOD.replace("\t1\t", "\t0\t"), "line 2 .*correct 0, label 7, predict 7"),
        (FIELD + GOOD.replace("7\t7\t", "-1\t-1\t"), "line 2 .*label of 0 or more"),
        (FIELD + "0\t7\t-1\t1.5\t0\t0:00:01\n", "line 2 .*radius 0 for an abstention"),
        (FIELD + GOOD.replace("0:00:01", "0:99:01"), "line 2 .*expected a time as h:mm:ss"),
        (OURS + "0\t7\t7\t1.5\t1\t0:00:01\t9\t8\t0.9\n", "line 2 .*got count 9, n 8"),
        (OURS + "0\t7\t7\t1.5\t1\t0:00:01\t8\t9\t1.9\n", "line 2 .*p_lower between 0 and 1"),
        (OURS + "0\t7\t7\t1.5\t1\t0:00:01\t8\t9\t0.9\textra\n", "expected 9 fields, got 10"),
        (OURS + "0\t7\t7\t1.5\t1\t0:00:01\t8\t9\t0.9", "line 2 is torn.*--resume"),
        (b"\x80\x02binary", "got binary data"),
    ],
)
def test_malformed_logs_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_log(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("place", ["absent.tsv", "."])
def test_a_path_that_is_no_file_is_named(tmp_path, place):
    with pytest.raises(InputError, match="cannot read .*expected a readable file"):
        read_log(tmp_path / place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[1, 2]", "expected a JSON object, got a list"),
        ('{"n": 1000, "alpha": NaN}', "expected JSON, got a number that it does not have"),
        (
            json.dumps(CONFIG | {"budget": "fixde"}),
            "expected budget fixed or anytime, got .fixde.;",
        ),
        (json.dumps(CONFIG | {"budget": ["fixed"]}), "expected budget fixed or anytime, got "),
        (json.dumps(CONFIG | {"n": 500}), "line 2 .*expected n = 500 samples, got 1000"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_named(tmp_path, text, message):
    path = write_log(tmp_path / "a.tsv", [row(1)])
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_log(path)
