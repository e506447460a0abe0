"""Sound certificates: images of whole levels, and networks whose rows are independent, as run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from half_spaces import ALPHA, SIGMA, above, classifier, two_classes

from drf_fast.certification import votes
from drf_fast.certification.network import RunNetwork
from drf_fast.certification.noise import LevelNoise, check_rows, rows_to_test


def test_bytes_and_their_floats_have_one_certificate():
    u = torch.full((3, 1, 2, 4), 180, dtype=torch.uint8)
    smoothed = classifier(above, sound=True)
    results = [smoothed.certify_batch(x, 10, 500, ALPHA, 64) for x in (u, u.float() / 255)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert bool((results[0].label == 0).all()) and bool((results[0].radius > 0).all())


@pytest.mark.parametrize("value", [0.5, 1.1, -1 / 255, math.nan, 100 / 255 * (1 + 2e-7)])
def test_images_between_levels_are_refused(value):
    x = torch.zeros(1, 2, 4)
    x[0, 0, 1] = value
    with pytest.raises(ValueError, match="8-bit images"):
        classifier(above, sound=True).certify(x, 10, 100, ALPHA, 32)


def test_a_network_whose_rows_see_each_other_is_refused_before_it_votes():
    def of_neighbours(rows: torch.Tensor) -> torch.Tensor:
        return two_classes(rows.flatten(1)[:, 0] > 0) + rows.mean()

    for size in (1, 64, 300):
        x = torch.zeros(1, 2, 4)
        if size == 1:
            classifier(of_neighbours, sound=True).certify(x, 5, 10, ALPHA, 1)
            continue
        with pytest.raises(ValueError, match="function of one row.*rows in another place"):
            classifier(of_neighbours, sound=True).certify(x, 5, 10, ALPHA, size)


def test_a_network_that_changes_its_mind_is_refused():
    calls = []

    def moody(rows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return two_classes(rows.flatten(1)[:, 0] > 0) + len(calls)

    with pytest.raises(ValueError, match="in the same batch again"):
        check_rows(moody, torch.randn(rows_to_test(256), 4), 256)


class Mixing(torch.nn.Module):
    """Whose rows see each other as soon as ``mix`` is not 0."""

    def __init__(self, fusible: bool) -> None:
        super().__init__()
        self.mix = torch.nn.Parameter(torch.zeros(()))
        self.fusible = fusible
        if fusible:  # certified as a copy, folded
            self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x) if self.fusible else x
        return two_classes(rows.flatten(1)[:, 0] > 0.5) + self.mix * rows.mean()


@pytest.mark.parametrize("fusible", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_tested_again_when_weights_have_changed(fusible, precision):
    base = Mixing(fusible)
    smoothed = classifier(base, sound=True, precision=precision)
    u = torch.full((1, 4, 4), 180, dtype=torch.uint8)
    assert smoothed.certify(u, 5, 100, ALPHA, 64) == smoothed.certify(u, 5, 100, ALPHA, 64)
    with torch.no_grad():
        base.mix.add_(1)
    with pytest.raises(ValueError, match="function of one row"):
        smoothed.certify(u, 5, 100, ALPHA, 64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_network_is_tested_as_it_votes(monkeypatch, precision, layout):
    seen: list[tuple[str, torch.dtype, bool]] = []
    plain, tested = RunNetwork.__call__, []

    def watched(self: RunNetwork, rows: torch.Tensor) -> torch.Tensor:
        last = rows.is_contiguous(memory_format=torch.channels_last)
        seen.append((str(self.form), rows.dtype, last))
        return plain(self, rows)

    monkeypatch.setattr(RunNetwork, "__call__", watched)
    monkeypatch.setattr(
        votes, "check_rows", lambda *a: (check_rows(*a), tested.extend(seen), seen.clear())[0]
    )
    base = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    smoothed = classifier(base, sound=True, precision=precision, memory_format=layout)
    smoothed.certify(torch.full((3, 8, 8), 99, dtype=torch.uint8), 64, 128, ALPHA, 64)
    assert len(tested) > 8 and len(seen) == 2
    assert len({*tested, *seen}) == 1  # the form, the dtype and the layout of the votes
    assert seen[0][1:] == (
        torch.bfloat16 if precision == "bf16" else torch.float32,
        layout == "channels_last",
    )


@pytest.mark.slow
def test_a_compiled_network_is_tested_and_votes_as_compiled_code(monkeypatch):
    ran: list[tuple[bool, int]] = []
    plain = RunNetwork.__call__

    def watched(self: RunNetwork, rows: torch.Tensor) -> torch.Tensor:
        ran.append((self.choices["compile"], len(rows)))
        return plain(self, rows)

    monkeypatch.setattr(RunNetwork, "__call__", watched)
    torch.manual_seed(0)
    base = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    u = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    compiled = classifier(base, sound=True, compile=True, memory_format="contiguous")
    found = compiled.certify_batch(u, 64, 300, ALPHA, 64)
    assert compiled.choices["compile"] is True and compiled.left_out == {}
    # The row test first, then 128 rows that select and 600 that count: all of one size, compiled.
    assert set(ran) == {(True, 64)} and len(ran) > 2 + 10
    expected = classifier(base, sound=True, memory_format="contiguous").certify_batch(
        u, 64, 300, ALPHA, 64
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_compiled_code_whose_rows_see_each_other_is_refused():
    with pytest.raises(ValueError, match="function of one row"):
        base = Mixing(fusible=False)
        torch.nn.init.ones_(base.mix)
        u = torch.full((1, 4, 4), 180, dtype=torch.uint8)
        classifier(base, sound=True, compile=True).certify(u, 5, 100, ALPHA, 64)


def test_zeros_behind_the_rows_are_told_from_rows():
    def of_any_zero(rows: torch.Tensor) -> torch.Tensor:
        return two_classes(rows[:, 0] > 0) + (rows == 0).all(1).any().float()

    with pytest.raises(ValueError, match="filled up with zeros"):
        check_rows(of_any_zero, torch.randn(rows_to_test(200), 4), 200)


def test_every_forward_pass_that_proves_something_has_the_same_number_of_rows():
    sizes = []

    def counting(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return above(rows)

    smoothed = classifier(counting, sound=True)
    u = torch.full((5, 1, 2, 4), 180, dtype=torch.uint8)
    smoothed.certify_batch(u, 10, 500, ALPHA, 64)
    assert sizes[0] == 50 and set(sizes[1:]) == {64}  # the first selects classes
    smoothed.predict(u[0], 100, ALPHA, 64)
    assert set(sizes[1:]) == {64}


def test_levels_are_given_to_the_network_as_float32_of_255ths():
    noise = LevelNoise(SIGMA, 0)
    u = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    ids, stream = torch.tensor([0]), "estimation"
    rows = noise.copies(noise.images(u), 3, ids, 0, stream, torch.float32)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, (rows * 255).round() / 255)
    assert torch.equal(noise.images(u.float() / 255), u)
    half = noise.copies(u, 3, ids, 0, stream, torch.bfloat16)
    assert torch.equal(half, rows.bfloat16())
    assert torch.equal(noise.copies(u, 3, ids, 0, stream, torch.float64), rows)


def test_rows_are_repeated_as_they_were_before_a_network_wrote_to_them():
    def in_place(rows: torch.Tensor) -> torch.Tensor:
        rows -= 0.5
        return two_classes(rows[:, 0] > 0) + rows[:, :1]

    assert check_rows(in_place, torch.randn(rows_to_test(64), 4), 64) == (256, 64)


class Normalising(torch.nn.Module):
    """Normalises its input in place, as torchvision's ``normalize(..., inplace=True)``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(1, 2, 4)
        self.norm = torch.nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5
        x *= 4
        return self.norm(self.head(x)).flatten(1)


def test_a_network_that_writes_to_its_input_is_fused():
    torch.manual_seed(0)
    smoothed = classifier(Normalising(), sound=True, memory_format="contiguous")
    u = torch.full((1, 4, 4), 180, dtype=torch.uint8)
    assert smoothed.row_test(u[None], 64) == (256, 64)
    assert type(smoothed._votes.network._network).__name__ == "_Fused"


def test_a_copy_and_another_number_of_threads_are_tested_anew(monkeypatch):
    tests: list[int] = []
    monkeypatch.setattr(votes, "check_rows", lambda *a: (tests.append(1), check_rows(*a))[1])
    smoothed = classifier(Mixing(fusible=False), sound=True)
    u = torch.full((1, 1, 4, 4), 180, dtype=torch.uint8)
    smoothed.row_test(u, 64)
    smoothed.row_test(u, 64)
    assert len(tests) == 1
    copy.deepcopy(smoothed).row_test(u, 64)  # as a pickled one, perhaps on another machine
    assert len(tests) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    smoothed.row_test(u, 64)
    assert len(tests) == 3
