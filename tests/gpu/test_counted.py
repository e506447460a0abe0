"""Without a GPU to time kernels: what they execute is counted and compared with the record."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this session interprets kernels", allow_module_level=True)

import counted
import triton

pytestmark = pytest.mark.proofs


@pytest.mark.parametrize("case", counted.CASES, ids=str)
def test_a_program_executes_what_was_recorded_within_a_tenth(case):
    """A Triton version that is not in the record is compared with the newest one in it."""
    record = counted.recorded()
    expected = record.get(triton.__version__, record[max(record)])[str(case)]
    got = counted.of(case)
    for name, figure in expected.items():
        assert got[name] == pytest.approx(figure, rel=0.1), (name, got, expected)


def test_the_page_shows_the_record():
    assert counted.table(counted.recorded()) in (counted.RECORD.with_suffix(".md")).read_text()
