"""Forms are tried, and the fastest of the first group in which one works is taken."""

from __future__ import annotations

import torch

from drf_fast.runtime.fastest import best_seconds, fastest

SECONDS = {"slow": 3.0, "fast": 1.0, "fastest": 0.5}


def attempt(form: str) -> tuple[float, str]:
    if form.startswith("broken"):
        raise RuntimeError(form)
    return SECONDS[form], form.upper()


def test_the_first_group_in_which_one_works_decides():
    found = fastest([["broken 1"], ["slow", "broken 2", "fast"], ["fastest"]], attempt)
    assert (found.form, found.made) == ("fast", "FAST")
    assert [str(error) for error in found.failures.values()] == ["broken 1", "broken 2"]
    # Frames would hold the tensors of the pass that failed.
    assert all(error.__traceback__ is None for error in found.failures.values())


def test_where_nothing_works_there_is_no_form():
    found = fastest([["broken 1"], ["broken 2"]], attempt)
    assert found.form is found.made is None and list(found.failures) == ["broken 1", "broken 2"]


def test_the_shortest_of_all_passes_counts(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 25.0])  # 9, 2 and 5 seconds
    monkeypatch.setattr("drf_fast.runtime.fastest.time.perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert best_seconds(lambda: calls.append(1), torch.device("cpu"), passes=3) == 2.0
    assert len(calls) == 3
