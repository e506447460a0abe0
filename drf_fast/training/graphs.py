"""An optimiser step as one CUDA graph, since launching a small network's kernels dominates.

A graph replays what was captured. What changes from step to step is memory that it reads: the
batch, the key of its noise, lambda. What changes from epoch to epoch (learning rate, epsilon,
weights of the losses) is captured as constants; when one changes, a new graph is captured.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

from drf_fast.backends.graphs import GraphMemory, captured
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.text import one_line
from drf_fast.training.methods.common import Batch, MethodOptions
from drf_fast.training.run import Run, announce

# Steps with as many images before a capture: kernels compile, libraries and the optimizer make
# their state.
_WARM_UP = 3

Descend = Callable[[Run, Batch, MethodOptions], torch.Tensor]


class GraphedSteps:
    """Calls ``descend``, from the fourth step on as a CUDA graph; directly if capturing fails.

    Args:
        descend: updates the weights by a batch, on the GPU only, and returns a tensor.
    """

    def __init__(self, descend: Descend) -> None:
        self._descend = descend
        self._constants: Any = None
        self._warm: collections.Counter[int] = collections.Counter()  # steps with so many images
        self._impossible = False
        self._graph: _Graph | None = None
        self._stream: Any = None  # one only: torch caches memory for each stream separately

    def __call__(self, run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
        """What ``descend`` returns for this batch; overwritten by the next call."""
        ball = run.ball
        rates = [group["lr"] for group in run.optimizer.param_groups]
        constants = (options, rates, None if ball is None else float(ball.epsilon))
        if constants != self._constants:
            self._constants, self._graph = constants, None
            self._warm.clear()
        # The last batch of an epoch may be smaller, or larger; its graph would not be worth its
        # memory.
        size = len(batch.target)
        self._warm[size] += 1
        common = self._warm[size] > _WARM_UP and self._warm[size] >= self._warm[self._graphed]
        if common and size > self._graphed and not self._impossible:
            self._graph = None
            self._graph = self._captured(run, batch, options)
        if self._impossible:
            return self._descend(run, batch, options)
        if self._graph is not None and size == self._graphed:
            return self._graph.replay(batch)
        try:
            return self._aside(run, batch, options)
        except RuntimeError as error:
            if self._graph is None or not is_out_of_memory(error):
                raise
            self._give_up(
                run, "as a CUDA graph leaves too little memory for a smaller batch", error
            )
        return self._descend(run, batch, options)

    @property
    def _graphed(self) -> int:
        """How many images the graph's batch has."""
        return 0 if self._graph is None else len(self._graph.batch.target)

    def _aside(self, run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
        """Run a step on the side stream that a capture will use: autograd records streams."""
        self._stream = self._stream or torch.cuda.Stream(run.device)
        here = torch.cuda.current_stream(run.device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                return self._descend(run, batch, options)
        finally:  # also where memory was lacking: the step is then repeated on this stream
            here.wait_stream(self._stream)

    def _give_up(self, run: Run, what: str, error: Exception) -> None:
        self._graph, self._impossible = None, True
        run.left_out["cuda_graph"] = reason = one_line(error, 200)
        announce(
            f"the training step {what} ({reason}); it runs uncaptured, slower; --no-cuda-graph "
            "says so from the start"
        )

    def _captured(self, run: Run, batch: Batch, options: MethodOptions) -> _Graph | None:
        try:
            return _Graph(self._descend, run, batch, options, self._stream)
        except Exception as error:  # whatever a network of the user's own does on the CPU
            self._give_up(run, "cannot be captured in a CUDA graph", error)
            return None


class _Graph:
    """One captured step, and the batch that it reads."""

    def __init__(
        self, descend: Descend, run: Run, batch: Batch, options: MethodOptions, stream: Any
    ) -> None:
        key = torch.zeros((), dtype=torch.int64, device=run.device)
        smoothed = None if batch.smoothed is None else batch.smoothed.clone()
        ids = batch.image_ids.clone()
        self.batch = Batch(batch.x.clone(), batch.target.clone(), key, ids, smoothed)
        self._graph = torch.cuda.CUDAGraph()
        run.optimizer.zero_grad(set_to_none=True)  # else gradients would be added to earlier ones
        torch.cuda.synchronize(run.device)
        with captured(self._graph, run.device, GraphMemory(run.device, stream)):
            self._seen = descend(run, self.batch, options)

    def replay(self, batch: Batch) -> torch.Tensor:
        self.batch.x.copy_(batch.x, non_blocking=True)
        self.batch.target.copy_(batch.target, non_blocking=True)
        self.batch.image_ids.copy_(batch.image_ids, non_blocking=True)
        if self.batch.smoothed is not None and batch.smoothed is not None:
            self.batch.smoothed.copy_(batch.smoothed, non_blocking=True)
        torch.as_tensor(self.batch.key).fill_(batch.key)
        self._graph.replay()
        return self._seen
