"""Which training steps are replayed, and what runs beside them; without a GPU.

Streams and graphs are stand-ins here: what a replay does is in test_graphed_steps.py, on a GPU.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drf_fast.training import graphs
from drf_fast.training.graphs import GraphedSteps


class Graph:
    """Stands for ``graphs._Graph``: notes what it was captured of, and replays."""

    captured: list[int]
    replayed: list[int]

    def __init__(self, descend: Any, run: Any, batch: Any, options: Any, stream: Any) -> None:
        assert isinstance(stream, Stream)
        self.batch = batch
        self.captured.append(len(batch.target))

    def replay(self, batch: Any) -> torch.Tensor:
        self.replayed.append(len(batch.target))
        return torch.tensor(len(batch.target))


class Stream:
    made = 0

    def __init__(self, device: Any) -> None:
        Stream.made += 1

    def wait_stream(self, other: Any) -> None:
        waits.append((self, other))


waits: list[tuple[Stream, Stream]] = []


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(Stream, "made", 0)
    monkeypatch.setattr(Graph, "captured", [], raising=False)
    monkeypatch.setattr(Graph, "replayed", [], raising=False)
    monkeypatch.setattr(graphs, "_Graph", Graph)
    here = Stream(None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Stream, "made", 0)


def steps(sizes: list[int], descend: Any = None) -> tuple[GraphedSteps, Any, list[int]]:
    """The steps of batches of these sizes; the run; what each returned."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    run = SimpleNamespace(ball=None, optimizer=optimizer, device="cuda", left_out={})
    made = GraphedSteps(descend or (lambda run, batch, options: torch.tensor(len(batch.target))))
    batches = [SimpleNamespace(target=torch.zeros(size)) for size in sizes]
    return made, run, [int(made(run, batch, None)) for batch in batches]  # type: ignore[arg-type]


def test_the_fourth_batch_of_a_size_is_captured_and_smaller_ones_run_aside():
    sizes = [8, 8, 8, 8, 8, 3, 8, 8, 3]
    _, _, seen = steps(sizes)
    assert seen == sizes and Graph.captured == [8] and Graph.replayed == [8] * 4
    assert Stream.made == 1  # memory that torch caches for a stream is no other's


def test_a_size_that_never_ran_is_not_captured():
    """Its kernels may still have to be compiled, which no capture allows."""
    sizes = [8, 8, 8, 3, 8]
    _, _, seen = steps(sizes)
    assert seen == sizes and Graph.captured == [8]


def test_full_batches_after_small_ones_get_the_graph():
    sizes = [3, 3, 3, 3, 8, 8, 8, 8, 3]
    _, _, seen = steps(sizes)
    assert seen == sizes and Graph.captured == [3, 8] and Graph.replayed == [3, 8]


def test_a_larger_last_batch_does_not_take_the_graph_from_all_others():
    _, _, seen = steps(5 * [8, 8, 8, 8, 8, 9])
    assert seen == 5 * [8, 8, 8, 8, 8, 9] and Graph.captured == [8]
    assert Graph.replayed == 22 * [8]


def test_the_graph_gives_way_to_a_batch_that_finds_no_memory_beside_it(capsys):
    held: list[GraphedSteps] = []

    def descend(run: Any, batch: Any, options: Any) -> torch.Tensor:
        if len(batch.target) == 3 and held[0]._graph is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor(len(batch.target))

    made, run, _ = steps([], descend)
    held.append(made)
    for size in (8, 8, 8, 8, 3, 8):
        assert int(made(run, SimpleNamespace(target=torch.zeros(size)), None)) == size  # type: ignore[arg-type]
    assert Graph.replayed == [8] and made._graph is None
    assert "out of memory" in run.left_out["cuda_graph"]
    assert capsys.readouterr().err.count("it runs uncaptured, slower") == 1


def test_without_a_graph_a_lack_of_memory_is_told():
    def descend(run: Any, batch: Any, options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        steps([8], descend)
    assert waits[-1] == waits[-2][::-1]  # what did run has ended for whoever comes next
