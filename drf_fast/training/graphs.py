"""An optimiser step as one CUDA graph, since launching a small network's kernels dominates.

A graph replays what was captured. What changes from step to step is memory that it reads: the
batch, the key of its noise, lambda. What changes from epoch to epoch (learning rate, epsilon,
weights of the losses) is captured as constants; when one changes, a new graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from drf_fast.backends.triton import captured
from drf_fast.runtime.logits import one_line
from drf_fast.training.methods.common import Batch, MethodOptions
from drf_fast.training.run import Run, announce

# Steps before a capture: kernels compile, libraries and the optimizer make their state.
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
        self._warm, self._impossible = 0, False
        self._graph: _Graph | None = None

    def __call__(self, run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
        """What ``descend`` returns for this batch; overwritten by the next call."""
        ball = run.ball
        rates = [group["lr"] for group in run.optimizer.param_groups]
        constants = (options, rates, None if ball is None else float(ball.epsilon))
        if constants != self._constants:
            self._constants, self._graph, self._warm = constants, None, 0
        if self._impossible:
            return self._descend(run, batch, options)
        if self._graph is None and self._warm >= _WARM_UP:
            self._graph = self._captured(run, batch, options)
        # The last batch of an epoch may be smaller; its graph would not be worth its memory.
        if self._graph is None or len(batch.target) != len(self._graph.batch.target):
            return self._aside(run, batch, options)
        return self._graph.replay(batch)

    def _aside(self, run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
        """Run a warm-up step on a side stream, as a capture does: autograd records streams."""
        self._warm += 1
        here, stream = torch.cuda.current_stream(run.device), torch.cuda.Stream(run.device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            seen = self._descend(run, batch, options)
        here.wait_stream(stream)
        return seen

    def _captured(self, run: Run, batch: Batch, options: MethodOptions) -> _Graph | None:
        try:
            return _Graph(self._descend, run, batch, options)
        except Exception as error:  # whatever a network of the user's own does on the CPU
            self._impossible = True
            run.left_out["cuda_graph"] = one_line(error, 200)
            announce(
                "the training step cannot be captured in a CUDA graph "
                f"({run.left_out['cuda_graph']}); it runs uncaptured, slower; --no-cuda-graph says "
                "so from the start"
            )
            return None


class _Graph:
    """One captured step, and the batch that it reads."""

    def __init__(self, descend: Descend, run: Run, batch: Batch, options: MethodOptions) -> None:
        key = torch.zeros((), dtype=torch.int64, device=run.device)
        smoothed = None if batch.smoothed is None else batch.smoothed.clone()
        ids = batch.image_ids.clone()
        self.batch = Batch(batch.x.clone(), batch.target.clone(), key, ids, smoothed)
        self._graph = torch.cuda.CUDAGraph()
        run.optimizer.zero_grad(set_to_none=True)  # else gradients would be added to earlier ones
        torch.cuda.synchronize(run.device)
        with captured(self._graph, run.device):
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
