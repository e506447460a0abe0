"""Passes of certification as graphs: what is replayed is what would have run.

There is no GPU here. A captured graph runs the same launches on the same memory again, and knows
nothing of Python any more: so a stand-in keeps the arguments that the step had when it was captured
and calls it with these. What capture itself forbids, tensors and values off the device, is watched
on the meta device, see tests/gpu/test_cuda_graph_on_meta.py.
"""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast.certification import passes
from drf_fast.certification.noise import LevelNoise
from drf_fast.certification.passes import Passes, Votes
from drf_fast.errors import RunError
from drf_fast.runtime.level_table import level_table


class Replayed:
    """Stands for ``passes._Graph`` without a GPU."""

    made: ClassVar[list[Any]] = []

    def __init__(self, step: Any, votes: Votes, rows: int, beside: Any) -> None:
        self.votes = votes.clone()
        self._run = functools.partial(step, self.votes, rows)
        self.made.append(self)

    def replay(self) -> None:
        self._run()


@pytest.fixture
def graphs(monkeypatch) -> list[Any]:
    """Passes on the CPU are captured as on a GPU; the graphs that were made."""
    monkeypatch.setattr(passes, "_Graph", Replayed)
    monkeypatch.setattr(passes, "_DEVICES", ("cpu",))
    monkeypatch.setattr(Replayed, "made", [])
    return Replayed.made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def smoothed(model: Any, **options: Any) -> drf_fast.SmoothedClassifier:
    return drf_fast.SmoothedClassifier(model, 5, 0.5, seed=3, memory_format="contiguous", **options)


def certificates(classifier: drf_fast.SmoothedClassifier, images: torch.Tensor) -> list[Any]:
    return [
        classifier.certify(x, n0=10, n=100, alpha=0.01, batch_size=16, image_id=at)
        for at, x in enumerate(images)
    ]


@pytest.mark.parametrize("sound", [False, True])
def test_replayed_passes_give_the_certificates_of_passes_that_ran(graphs, monkeypatch, sound):
    images = torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    images /= 255
    replayed = certificates(smoothed(network(), sound=sound), images)
    # Selection, estimation in whole passes, and what is left of 100 after six of 16. Of sound noise
    # selection alone: the test that rows are independent runs without a graph, so must the votes.
    assert len(graphs) == (1 if sound else 3)
    monkeypatch.setattr(passes, "_DEVICES", ())
    assert replayed == certificates(smoothed(network(), sound=sound), images)


def in_other_memory(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = -parameter.data.clone()


def transposed_in_place(model: nn.Module) -> None:
    kernels = model.get_parameter("0.weight")
    kernels.data = kernels.data.transpose(2, 3)  # the same address


@pytest.mark.parametrize("change", [in_other_memory, transposed_in_place])
def test_new_weights_are_never_certified_by_an_old_graph(graphs, monkeypatch, change):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = network()
    classifier = smoothed(model)
    certificates(classifier, images)
    before = len(graphs)
    change(model)
    after = certificates(classifier, images)
    assert len(graphs) > before
    monkeypatch.setattr(passes, "_DEVICES", ())
    assert after == certificates(smoothed(model), images)


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(graphs, monkeypatch, capsys):
    class Refused:
        def __init__(self, *arguments: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(passes, "_Graph", Refused)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    classifier = smoothed(network())
    found = certificates(classifier, images)
    assert capsys.readouterr().err.count("cannot be captured in a CUDA graph") == 1
    assert "not permitted" in classifier.left_out["cuda_graph"]
    monkeypatch.setattr(passes, "_DEVICES", ())
    assert found == certificates(smoothed(network()), images)


def test_a_mere_function_is_never_captured(graphs):
    model = network()
    certificates(smoothed(lambda x: model(x)), torch.rand(6, 1, 8, 8))
    assert not graphs


def test_graphs_are_few_and_a_copy_has_none(graphs):
    model, runner = network(), Passes()

    def step(votes: Votes, rows: int) -> None:
        votes.counts += rows
        votes.offset += rows

    for rows in range(1, 30):
        for _ in range(5):
            zero = torch.zeros((), dtype=torch.int64)
            votes = Votes(torch.zeros(1, 3), torch.zeros(1), zero, torch.zeros(1, 2))
            runner.run(step, votes, rows, ("train", model))
            assert votes.counts.tolist() == [[rows, rows]] and int(votes.offset) == rows
    assert len(graphs) == passes._MOST_GRAPHS
    assert copy.deepcopy(runner)._graphs == {}


def test_graphs_of_a_copy_that_is_gone_are_given_back(graphs, monkeypatch):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    model = nn.Sequential(*layers).eval()  # batch normalisation is folded, in a copy
    classifier = smoothed(model)
    certificates(classifier, images)
    old = list(graphs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    after = certificates(classifier, images)
    held = list(classifier._votes.passes._graphs.values())
    assert old and held and not any(graph is gone for graph in held for gone in old)
    monkeypatch.setattr(passes, "_DEVICES", ())
    assert after == certificates(smoothed(model), images)


def test_graphs_give_way_to_passes_that_find_no_memory_beside_them(graphs, capsys):
    runner = Passes()

    def step(votes: Votes, rows: int) -> None:
        if rows == 7 and runner._graphs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        votes.counts += rows
        votes.offset += rows

    zero = torch.zeros((), dtype=torch.int64)
    votes = Votes(torch.zeros(1, 3), torch.zeros(1), zero, torch.zeros(1, 2, dtype=torch.int64))
    for rows in (5, 5, 5, 5, 7, 5, 7):
        runner.run(step, votes, rows, "train")
    assert votes.counts.tolist() == [[39, 39]] and int(votes.offset) == 39
    assert len(graphs) == 1 and not runner._graphs
    assert "out of memory" in str(runner.reason)
    assert capsys.readouterr().err.count("leave too little memory") == 1


@pytest.mark.parametrize("status", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_a_batch_for_which_a_library_finds_no_memory_is_too_large(monkeypatch, status):
    votes = smoothed(network())._votes

    def rate(x: torch.Tensor, size: int) -> float:
        if size > 128:
            raise RuntimeError(f"CUDA error: {status} when calling `cublasCreate(handle)`")
        return size

    monkeypatch.setattr(votes, "rate", rate)
    assert votes.batch_size(torch.rand(1, 1, 8, 8)) == 128


def test_without_graphs_to_give_way_a_lack_of_memory_is_told(graphs):
    def step(votes: Votes, rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    zero = torch.zeros((), dtype=torch.int64)
    votes = Votes(torch.zeros(1, 3), torch.zeros(1), zero, torch.zeros(1, 2))
    with pytest.raises(torch.OutOfMemoryError):
        Passes().run(step, votes, 5, "train")


def test_a_lack_of_memory_names_the_rows_of_a_pass():
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    smoothed = drf_fast.SmoothedClassifier(Large(), 2, 0.5, memory_format="contiguous")
    with pytest.raises(RunError, match=r"a pass of 3,000 rows \(1, 4, 4\) .* lower --batch-size"):
        smoothed.certify(torch.zeros(1, 4, 4), 9_000, 9_000, 0.01, batch_size=3_000)
    with pytest.raises(RunError, match="a pass of 7,000 rows"):
        smoothed.rate(torch.zeros(1, 1, 4, 4), 7_000)


def test_the_table_that_a_graph_reads_stays():
    noise, u = LevelNoise(0.5, 0), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    noise.copies(u, 2, torch.zeros(1, dtype=torch.int64), 0, "selection", torch.float32)
    guide = weakref.ref(level_table(0.5, u.device).guide)
    for number in range(1, 140):
        level_table(number / 2**14, u.device)
    assert guide() is not None
