"""One forward pass of certification, noise and votes included; on a GPU as one CUDA graph.

Launching the kernels of a small network takes longer than running them. A graph replays what was
captured, so all that changes from pass to pass is memory that it reads: the images, their ids, the
index of the next sample, the votes so far. A pass without a graph uses the same memory.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from drf_fast.backends.graphs import GraphMemory, captured
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.progress import say
from drf_fast.runtime.text import one_line

_DEVICES = ("cuda",)
_WARM_UP = 3  # passes before a capture: kernels compile, libraries make their state
_MOST_GRAPHS = 8


@dataclass
class Votes:
    """The tensors that a pass reads and changes.

    Attributes:
        x: (B, ...) images.
        image_ids: (B,) int64, which determine the noise with the seed.
        offset: 0-dim int64, the index of the next sample.
        counts: (B, K) int64 votes so far.
    """

    x: torch.Tensor
    image_ids: torch.Tensor
    offset: torch.Tensor
    counts: torch.Tensor

    def clone(self) -> Votes:
        return Votes(*(value.clone() for value in self._values()))

    def copy_(self, other: Votes) -> None:
        for own, value in zip(self._values(), other._values(), strict=True):
            own.copy_(value, non_blocking=True)

    def _values(self) -> tuple[torch.Tensor, ...]:
        return self.x, self.image_ids, self.offset, self.counts


# Adds the votes of a number of further samples of each image, and advances the offset.
Step = Callable[[Votes, int], None]


class Passes:
    """Runs passes; on a GPU, from the fourth of a kind on, as CUDA graphs.

    Attributes:
        reason: why passes run without a graph on a GPU, once one could not be captured, or graphs
            left too little memory for what runs beside them.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: collections.Counter[Hashable] = collections.Counter()
        self._last: tuple[_Graph, Votes] | None = None  # whose memory the graph's is a copy of

    def run(self, step: Step, votes: Votes, rows: int, kind: Hashable | None) -> None:
        """``step(votes, rows)``, which waits for nothing.

        Args:
            kind: equal for two passes only if the graph of one can be replayed for the other: the
                stream of the noise, the rows and the memory of the network. None: use no graph.
        """
        graph = None
        if kind is not None and votes.x.device.type in _DEVICES and self.reason is None:
            key = (kind, rows, votes.x.shape, votes.x.stride(), votes.x.dtype)
            graph = self._graphs.get(key) or self._captured(step, votes, rows, key)
        if graph is None:
            self._last = None
            self._uncaptured(step, votes, rows)
            return
        if self._last is None or self._last[0] is not graph or self._last[1] is not votes:
            graph.votes.copy_(votes)
            self._last = graph, votes
        graph.replay()
        votes.offset.copy_(graph.votes.offset)
        votes.counts.copy_(graph.votes.counts)

    def forget(self) -> None:
        """Drop the graphs, for example because the network that they replay was rebuilt."""
        self._graphs.clear()
        self._seen.clear()
        self._last = None

    def _uncaptured(self, step: Step, votes: Votes, rows: int) -> None:
        try:
            step(votes, rows)
            return
        except RuntimeError as error:
            if not self._graphs or not is_out_of_memory(error):
                raise
            self.reason = one_line(error)
        # Repeating counts nothing twice: votes are added after everything that allocates memory.
        self.forget()
        say(
            "CUDA graphs leave too little memory for passes beside them; the network is certified "
            f"without graphs, slower where it is small ({self.reason})"
        )
        step(votes, rows)

    def _captured(self, step: Step, votes: Votes, rows: int, key: Hashable) -> _Graph | None:
        self._seen[key] += 1
        if self._seen[key] <= _WARM_UP or len(self._graphs) >= _MOST_GRAPHS:
            return None
        try:
            beside = next(iter(self._graphs.values()), None)
            self._graphs[key] = graph = _Graph(step, votes, rows, beside)
            return graph
        except Exception as error:  # whatever a network of the user's own does on the CPU
            self.reason = one_line(error)
            self.forget()
            say(
                "the network cannot be captured in a CUDA graph and is certified without one, "
                f"slower where it is small ({self.reason})"
            )
            return None

    def __getstate__(self) -> dict[str, object]:
        """The state without graphs, which refer to this process's GPU memory."""
        seen = collections.Counter[Hashable]()
        return {"reason": self.reason, "_graphs": {}, "_seen": seen, "_last": None}


class _Graph:
    """One captured pass, with the tensors that it reads and changes.

    Its temporary memory comes from the pool of ``beside``, another graph, if there is one.
    """

    def __init__(self, step: Step, votes: Votes, rows: int, beside: _Graph | None) -> None:
        self.votes = votes.clone()
        # Kernels for the alignment of these tensors compile here; a capture allows no compilation.
        step(self.votes, rows)
        self._graph = torch.cuda.CUDAGraph()
        self.memory = GraphMemory(votes.x.device) if beside is None else beside.memory
        torch.cuda.synchronize(votes.x.device)
        # sigma and the seed are the same in all passes.
        with captured(self._graph, votes.x.device, self.memory):
            step(self.votes, rows)

    def replay(self) -> None:
        self._graph.replay()
