"""One optimiser step, with gradient accumulation and data parallelism.

The parts of a batch are consecutive rows. Losses are means over images, so a part of n of the B
images is weighted by n/B, and noise is a function of step and image: the sum over the parts equals
the step of one process on the whole batch, up to rounding, unless the network has batch
normalisation, which sees each part alone. Gradients are summed by one all-reduce per step. That is
DistributedDataParallel without its hooks, which must not run during an attack and would save
nothing: there is one all-reduce for T + 1 passes through the network.
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
    """Train on one batch: update the weights, lambda and the totals of ``run``.

    Raises:
        RunError: training diverged, or another process ended.
    """
    config, size = run.config, len(batch.target)
    # For dropout and the like: a seed from step and process, so that a resumed run agrees.
    step = FIRST_NETWORK_STEP + run.step * processes.count() + processes.rank()
    torch.manual_seed(noise_key(config.seed, step))
    sums = (run.graphs or descend)(run, batch, options)
    processes.all_reduce_sum(sums)
    run.totals.sums += torch.stack([sums[0], sums[1], sums[2:].sum()])
    run.totals.images += size
    if isinstance(run.ball, SoftBall) and uses_adversary(config):
        run.ball.update(sums[2:])
    run.step += 1
    run.batch += 1


def descend(run: Run, batch: Batch, options: MethodOptions) -> torch.Tensor:
    """Update the weights by one batch.

    Returns:
        (2 + B,) float64 on the device, to be summed over processes: the sums over this process's
        images of loss and of the share of right copies, then the distance of each image, 0 for
        those of other processes.
    """
    config, size = run.config, len(batch.target)
    run.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(2 + size, dtype=torch.float64, device=run.device)
    for rows in _parts(size, config.accumulate):
        result = _loss(run, batch.part(rows), options)
        images = rows.stop - rows.start
        (result.loss * (images / size)).backward()
        target = batch.target[rows].repeat_interleave(config.num_samples)
        sums[0] += result.loss.detach().double() * images
        sums[1] += (result.logits.argmax(1) == target).double().mean() * images
        if result.distance is not None:
            sums[2:][rows] = result.distance.detach().double()
    _sum_gradients(run.model)
    run.optimizer.step()
    _average_statistics(run.model)
    return sums


def _parts(size: int, parts: int) -> list[slice]:
    """This process's share of ``size`` rows, in ``parts`` slices; empty ones are left out."""
    first, number = processes.rank() * parts, processes.count() * parts
    cuts = [size * i // number for i in range(first, first + parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def _loss(run: Run, batch: Batch, options: MethodOptions) -> StepLoss:
    try:
        with machine.autocast(run.device, run.config.precision):
            return methods.get(run.config.method).step(run.network, batch, options, run.ball)
    except (TypeError, ValueError) as error:
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
    """Average the running statistics of batch normalisation over processes, for one checkpoint."""
    if processes.count() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    local: list[Any] = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if local:
        flat = torch.cat(local)
        processes.all_reduce_sum(flat)
        flat /= processes.count()
        for buffer, mean in zip(local, flat.split([b.numel() for b in local]), strict=True):
            buffer.copy_(mean)
