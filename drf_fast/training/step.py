"""One optimiser step, whole or in parts, on one process or divided between several.

The parts of a batch are consecutive rows. Losses are means over images, so a part of n of the B
images counts n/B, and noise is named by step and image: the sum of the parts is the step that one
process takes at once, up to rounding. Gradients are summed by one exchange a step. That is
DistributedDataParallel without its hooks, which must not run during an attack and would save
nothing: an exchange comes after T + 1 passes through the network.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from drf_fast.balls import SoftBall
from drf_fast.config.training import uses_adversary
from drf_fast.errors import RunError
from drf_fast.functional import noise_key
from drf_fast.runtime import machine, processes
from drf_fast.runtime.randomness import FIRST_NETWORK_STEP
from drf_fast.training import methods
from drf_fast.training.methods.common import Batch, MethodOptions, StepLoss
from drf_fast.training.run import Run


def one_step(run: Run, batch: Batch, options: MethodOptions) -> None:
    """Change the weights, lambda and the totals of ``run`` by one batch.

    Raises:
        RunError: training diverged, or another process ended.
    """
    config, size = run.config, len(batch.target)
    # Dropout and the like: random numbers that depend on step and process, so a resumed run agrees.
    step = FIRST_NETWORK_STEP + run.step * processes.count() + processes.rank()
    torch.manual_seed(noise_key(config.seed, step))
    seen = (run.graphs or descend)(run, batch, options)
    processes.all_reduce_sum(seen)
    run.totals.sums += torch.stack([seen[0], seen[1], seen[2:].sum()])
    run.totals.images += size
    if isinstance(run.ball, SoftBall) and uses_adversary(config):
        run.ball.update(seen[2:])
    run.step += 1
    run.batch += 1


def descend(run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
    """Change the weights by one batch.

    Returns:
        (2 + B,) float64 on the device, all that processes have to tell each other: the sums over
        this process's images of loss and of the share of right copies, then the distance of each
        image, 0 for those of other processes.
    """
    config, size = run.config, len(batch.target)
    run.optimizer.zero_grad(set_to_none=True)
    seen = torch.zeros(2 + size, dtype=torch.float64, device=run.device)
    for rows in _parts(size, config.accumulate):
        result = _loss(run, batch.part(rows), options)
        images = rows.stop - rows.start
        (result.loss * (images / size)).backward()
        target = batch.target[rows].repeat_interleave(config.num_samples)
        seen[0] += result.loss.detach().double() * images
        seen[1] += (result.logits.argmax(1) == target).double().mean() * images
        if result.distance is not None:
            seen[2:][rows] = result.distance.detach().double()
    _sum_gradients(run.model)
    run.optimizer.step()
    _average_statistics(run.model)
    return seen


def _parts(size: int, parts: int) -> list[slice]:
    """This process's rows of ``size``, in ``parts`` slices; empty ones are left out."""
    first, number = processes.rank() * parts, processes.count() * parts
    cuts = [size * i // number for i in range(first, first + parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def _loss(run: Run, batch: Batch, options: MethodOptions) -> StepLoss:
    try:
        with machine.autocast(run.device, run.config.precision):
            return methods.get(run.config.method).step(run.network, batch, options, run.ball)
    except ValueError as error:
        raise RunError(f"training failed at step {run.step}: {error}") from error


def _sum_gradients(model: nn.Module) -> None:
    if processes.count() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients: list[Any] = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    processes.all_reduce_sum(flat)
    sizes = [p.numel() for p in parameters]
    for p, gradient in zip(parameters, flat.split(sizes), strict=True):
        p.grad = gradient.view_as(p).clone(memory_format=torch.preserve_format)


def _average_statistics(model: nn.Module) -> None:
    """Batch normalisation: each process saw other images; one checkpoint holds one mean."""
    if processes.count() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    means: list[Any] = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if means:
        flat = torch.cat(means)
        processes.all_reduce_sum(flat)
        flat /= processes.count()
        for own, mean in zip(means, flat.split([b.numel() for b in means]), strict=True):
            own.copy_(mean)
