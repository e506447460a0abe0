"""``drf-fast train``: the training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from drf_fast import data
from drf_fast.balls import SoftBall
from drf_fast.config.options import TrainConfig
from drf_fast.config.training import (
    images_of_a_step,
    run_folder,
    smallest_batch,
    steps_of_an_epoch,
    uses_adversary,
)
from drf_fast.errors import RunError
from drf_fast.functional import noise_key, noisy_repeat
from drf_fast.runtime import machine, processes, signals
from drf_fast.runtime.files import locked, new_folder
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.progress import Tracker
from drf_fast.training import schedule, state, teacher
from drf_fast.training.folder import refuse_foreign, remove_run, remove_temporary_files
from drf_fast.training.methods.common import Batch
from drf_fast.training.metrics import Metrics
from drf_fast.training.prepare import prepare
from drf_fast.training.run import Run, Totals, announce
from drf_fast.training.step import one_step

_STEPS_BETWEEN_SIGNAL_CHECKS = 16  # where several processes use GPUs


def train(config: TrainConfig) -> Path:
    """Train with the settings in ``config`` and return the run folder.

    Raises:
        InputError: bad settings, data or output folder; the run to be resumed has other settings,
            or another process is writing to it.
        RunError: training diverged, or another process of the job ended.
    """
    folder = run_folder(config)
    first = processes.rank() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.same_threads())
        existed = folder.is_dir()
        if existed and (config.force or config.resume):
            refuse_foreign(folder)
        if first and existed:  # before its checkpoint is read
            stack.enter_context(locked(folder))
        run, log = prepare(config, folder), None
        if first:
            new_folder(folder, force=config.force, resume=config.resume)
            if not existed:
                stack.enter_context(locked(folder))
            if config.force:  # never leave an old network beside new settings
                remove_run(folder)
            remove_temporary_files(folder)
            state.record(run)
            log = Metrics(folder, run.epoch, config.epochs)
            stack.enter_context(contextlib.closing(log))
        teacher.attach(run)
        stack.enter_context(signals.deferred())
        steps = config.epochs * steps_of_an_epoch(config, len(run.train_set), processes.count())
        total = steps if config.max_steps is None else min(steps, config.max_steps)
        tracker = stack.enter_context(Tracker("train", total, quiet=not first, done=run.step))
        while run.epoch < config.epochs and not _finished(run):
            _train_epoch(run, tracker)
            if run.batch:  # --max-steps ended within the epoch
                _save(run)
                _stop_if_signalled(run, saved=True)
                break
            metrics = _epoch_metrics(run)
            if log is not None:
                log.write(metrics)
            run.epoch += 1
            run.totals = Totals.empty(run.device)
            _save(run)
            _stop_if_signalled(run, saved=True)
        processes.barrier()
    announce(f"run folder: {folder}")
    return folder


def _train_epoch(run: Run, tracker: Tracker) -> None:
    """Train on the remaining batches of the epoch; totals stay on the device."""
    config = run.config
    options = schedule.options(config, run.epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = schedule.learning_rate(config, run.epoch)
    if run.ball is not None:
        run.ball.epsilon = schedule.epsilon(config, run.epoch)
    run.model.train()
    steps = steps_of_an_epoch(config, len(run.train_set), processes.count())
    began = time.perf_counter()
    for batch in batches(run):
        one_step(run, batch, options)
        ended = time.perf_counter()
        run.totals.seconds += ended - began
        began = ended
        tracker.advance(note=lambda: _progress_note(run))
        if run.batch == steps:
            break
        _stop_if_signalled(run)
        if _finished(run):
            return
        if config.save_every and run.step % config.save_every == 0:
            _save(run)
    if run.device.type == "cuda":  # kernels still run after their launches
        torch.cuda.synchronize(run.device)
        run.totals.seconds += time.perf_counter() - began
    run.batch = 0
    if isinstance(run.ball, SoftBall):
        run.ball.end_epoch()


def _save(run: Run) -> None:
    """Save the state of the run, over an older one.

    Raises:
        RunError: training diverged; the older one stays.
    """
    _refuse_divergence(run)
    state.save(run)


def _refuse_divergence(run: Run) -> None:
    """Raise RunError if the loss of this epoch or a weight is no finite number."""
    loss = float(run.totals.sums[0]) / max(1, run.totals.images)
    wrong = None if math.isfinite(loss) else f"the loss of epoch {run.epoch + 1} is {loss}"
    trained = (p for p in run.model.parameters() if p.requires_grad)  # masks may hold infinity
    if wrong is None and not all(bool(p.isfinite().all()) for p in trained):
        wrong = f"a weight is no finite number in epoch {run.epoch + 1}"
    if wrong is not None:
        raise RunError(f"{wrong}: training diverged; lower --lr or --epsilon")


def _progress_note(run: Run) -> str:
    """Loss, accuracy and rate of the epoch so far; synchronises with the device."""
    images, seconds = max(1, run.totals.images), max(run.totals.seconds, 1e-9)
    loss, hits, distance = (value / images for value in run.totals.sums.tolist())
    text = f"loss {loss:.3f}, {100 * hits:.1f} % under noise"
    if uses_adversary(run.config):
        text += f", distance {distance:.2f}"
    if isinstance(run.ball, SoftBall):
        text += f", lambda {float(run.ball.lam):.2f}"
    return f"{text}, {images / seconds:,.0f} images/s"


def _stop_if_signalled(run: Run, saved: bool = False) -> None:
    """After SIGINT or SIGTERM, save the checkpoint (unless ``saved``) and stop.

    Raises:
        Stopped: one of these signals has arrived, in any process.
    """
    number = signals.received()
    if processes.count() > 1:
        number = _signal_of_any_process(run, number, now=saved)
    if number is not None:
        if not saved:
            _save(run)
        # All stop after this step; torchrun ends the others as soon as one of them has.
        processes.barrier()
        processes.finish()
        raise signals.Stopped(number)


def _signal_of_any_process(run: Run, number: int | None, now: bool) -> int | None:
    """The signal to stop with if any process got one, so that all stop after the same step."""
    if run.device.type == "cuda" and run.step % _STEPS_BETWEEN_SIGNAL_CHECKS and not now:
        return None  # reading the result synchronises with the GPU, too slow for every step
    signalled = torch.tensor([number is not None], dtype=torch.float32, device=run.device)
    processes.all_reduce_sum(signalled)
    return (number or signal.SIGTERM) if float(signalled) > 0 else None


def batches(run: Run) -> Iterator[Batch]:
    """The remaining batches of this epoch, on the device, each with its noise key."""
    config = run.config
    for x, target, ids in data.batches(
        run.train_set,
        images_of_a_step(config),
        shuffle_seed=config.seed,
        epoch=run.epoch,
        start=run.batch,
        augment=config.augment,
        smallest=smallest_batch(config, processes.count()),
    ):
        ids = machine.moved(ids, run.device)
        yield Batch(
            machine.moved(x, run.device),
            machine.moved(target, run.device),
            noise_key(config.seed, run.step),
            ids,
            None if run.smoothed is None else run.smoothed[ids],
        )


def _finished(run: Run) -> bool:
    return run.config.max_steps is not None and run.step >= run.config.max_steps


def _epoch_metrics(run: Run) -> dict[str, Any]:
    images, seconds = run.totals.images, run.totals.seconds
    loss, hits, distance = (value / images for value in run.totals.sums.tolist())
    _refuse_divergence(run)
    metrics = {
        "epoch": run.epoch + 1,
        "step": run.step,
        "loss": loss,
        "train_accuracy_under_noise": hits,
        "test_accuracy_under_noise": accuracy_under_noise(run),
        "lr": run.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "images_per_second": images / seconds,
    }
    if uses_adversary(run.config):
        metrics["distance"] = distance
    if run.ball is not None:
        metrics["epsilon"] = float(run.ball.epsilon)
    if isinstance(run.ball, SoftBall):
        metrics["lambda"] = float(run.ball.lam)
    return metrics


def accuracy_under_noise(run: Run) -> float:
    """Share of test images classified right under one draw of the noise each."""
    hits = torch.zeros((), dtype=torch.int64, device=run.device)
    run.model.eval()
    parts = data.batches(run.test_set, 256, shuffle_seed=None, epoch=0)
    for number, (x, target, ids) in enumerate(parts):
        if number % processes.count() != processes.rank():
            continue
        x, target, ids = (machine.moved(tensor, run.device) for tensor in (x, target, ids))
        noisy = noisy_repeat(
            x,
            run.config.sigma,
            1,
            seed=run.config.seed,
            image_ids=ids,
            stream="prediction",
        )
        with torch.no_grad(), machine.autocast(run.device, run.config.precision):
            hits += (logits_of(run.network(noisy)).argmax(1) == target).sum()
    processes.all_reduce_sum(hits)
    return int(hits) / len(run.test_set)
