"""``drf-fast train``: the training loop, readable in one sitting."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from drf_fast import certify, checkpoint, data, models, processes, report, runtime
from drf_fast.adversary import HardBall, SoftBall
from drf_fast.certlog import sidecar
from drf_fast.config import CertifyConfig, TrainConfig
from drf_fast.config_values import names_code
from drf_fast.errors import InputError, RunError
from drf_fast.files import locked, new_folder, read_json, write_json
from drf_fast.functional import noise_key, noisy_repeat
from drf_fast.methods.common import Batch
from drf_fast.metrics import Metrics, last_metrics
from drf_fast.models import normalize
from drf_fast.progress import Tracker
from drf_fast.settings import (
    MEASURED,
    check,
    images_of_a_step,
    method_label,
    refuse_other_settings,
    run_folder,
    steps_of_an_epoch,
    uses_adversary,
    uses_drf,
)
from drf_fast.training import dry_run, schedule, state
from drf_fast.training.graphs import GraphedSteps
from drf_fast.training.run import Run, Totals, announce
from drf_fast.training.step import descend, one_step

_FILES = (
    checkpoint.FILE_NAME,
    "config.json",
    "metrics.jsonl",
    "certificates.tsv",
    "certificates.json",
    "curve.png",
)


def run(config: TrainConfig) -> int:
    """The command: train, certify some test images, print and draw what came out.

    Raises:
        InputError, RunError: see ``train``.
    """
    if config.dry_run:
        with runtime.same_threads():
            dry = _prepare(config, run_folder(config))
            dry_run.show(dry, _batches(dry), accuracy_under_noise)
        processes.finish()
        return 0
    folder = train(config)
    metrics = last_metrics(folder)
    if metrics and not config.json and processes.rank() == 0:
        accuracy = 100 * metrics["test_accuracy_under_noise"]
        print(f"accuracy under noise (one draw each, all test images): {accuracy:.2f} %")
    log = _certify(config, folder) if config.certify_images else None
    processes.finish()
    if processes.rank() > 0:
        return 0
    if log is not None:
        announce(f"curve: {folder / 'curve.png'}")
    if config.json:
        shown = None if log is None else report.as_json([log], plot=folder / "curve.png")
        print(json.dumps({"folder": str(folder), "metrics": metrics, "report": shown}, indent=2))
        return 0
    return 0 if log is None else report.run([log], plot=folder / "curve.png", force=True)


def _certify(config: TrainConfig, folder: Path) -> Path:
    """Certify some test images into the run folder; a log of an earlier network is replaced."""
    out = folder / "certificates.tsv"
    network = checkpoint.sha256(folder / checkpoint.FILE_NAME)
    same = config.resume and sidecar(out).exists()
    same = same and read_json(sidecar(out)).get("checkpoint_sha256") == network
    same = processes.agree(same)
    test_images = len(data.load(config.data, "test", data_dir=config.data_dir))
    log = certify.certify(
        CertifyConfig(
            checkpoint=folder / checkpoint.FILE_NAME,
            arch=config.arch if names_code(config.arch) else None,
            n=config.certify_n,
            skip=max(1, test_images // config.certify_images),
            max_images=config.certify_images,
            precision=config.precision,
            device=config.device,
            compile=config.compile,
            out=out,
            resume=same,
            force=not same,
        )
    )
    assert log is not None  # no --plan here
    return log


def _remove_run(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was about to write; see ``files.atomic_file``."""
    for name in _FILES:
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run folder.

    Raises:
        InputError: bad settings, data or output folder, a run of other settings to resume, or one
            that another process is writing.
        RunError: training diverged, or another process of the job ended.
    """
    folder = run_folder(config)
    first = processes.rank() == 0
    with contextlib.ExitStack() as held:
        held.enter_context(runtime.same_threads())
        existed = folder.is_dir()
        if first and existed:  # before its checkpoint is read
            held.enter_context(locked(folder))
        run, log = _prepare(config, folder), None
        if first:
            new_folder(folder, force=config.force, resume=config.resume)
            if not existed:
                held.enter_context(locked(folder))
            if config.force:  # an old network beside new settings would be taken for the new one
                _remove_run(folder)
            _remove_unfinished(folder)
            environment = runtime.environment(run.device)
            recorded = {**state.description(run), "environment": environment}
            write_json(folder / "config.json", recorded)
            log = held.enter_context(contextlib.closing(Metrics(folder, run.epoch)))
        while run.epoch < config.epochs and not _finished(run):
            _train_epoch(run)
            if run.batch:  # --max-steps ended within the epoch
                state.save(run)
                break
            metrics = _epoch_metrics(run)
            if log is not None:
                log.write(metrics)
            run.epoch += 1
            run.totals = run.no_totals()
            state.save(run)
        processes.wait()
    announce(f"run folder: {folder}")
    return folder


def _prepare(config: TrainConfig, folder: Path) -> Run:
    """Data, network, optimizer and ball; from the checkpoint in the folder when resuming."""
    check(config, processes.count())
    if config.normalize == "auto":
        config = dataclasses.replace(config, normalize=normalize.for_data(config.data))
    train_set = data.load(
        config.data,
        "train",
        data_dir=config.data_dir,
        limit=config.train_images,
        download=not config.dry_run,
    )
    test_set = data.load(config.data, "test", data_dir=config.data_dir, download=not config.dry_run)
    device = runtime.pick_device(config.device)
    processes.start(device)
    saved = processes.agree(state.read(folder) if config.resume else None)
    if saved:
        refuse_other_settings(config, saved["config"], train_set.fingerprint, folder)
        known = {name: saved["config"].get(name, "auto") for name in MEASURED}
        config = dataclasses.replace(config, **known)
    if config.threads != "auto":
        runtime.set_threads(config.threads)
    shape = train_set.image_shape
    if test_set.image_shape != shape:
        raise InputError(
            f"{config.data_dir} has training images of shape {shape} and test images of shape "
            f"{test_set.image_shape}: expected one shape; resize them"
        )
    torch.manual_seed(noise_key(config.seed, 2**63) % 2**63)  # a step that training never takes
    model = models.build(config.arch, train_set.num_classes, shape, config.normalize)
    rows = min(images_of_a_step(config), len(train_set)) * config.num_samples
    placed = (config.precision, shape, rows)
    model, memory_format = runtime.place(model, device, config.memory_format, *placed)
    agreed = processes.agree(memory_format)
    if agreed != memory_format:
        model, memory_format = runtime.place(model, device, agreed, *placed)
    config = dataclasses.replace(
        config, memory_format=memory_format, threads=torch.get_num_threads()
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    ball = _make_ball(config)
    graphed = config.cuda_graph and device.type == "cuda" and processes.count() == 1
    graphs = GraphedSteps(descend) if graphed and not config.compile else None
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    run = Run(
        config, folder, train_set, test_set, device, model,
        torch.compile(model) if config.compile else model, optimizer, ball, Totals(sums), graphs,
    )  # fmt: skip
    if saved:
        state.restore(run, saved)
    several = f", {processes.count()} processes" if processes.count() > 1 else ""
    announce(
        f"training {config.arch} with {method_label(config)} at sigma {config.sigma:g} on "
        f"{len(train_set):,} images of {config.data}, m {config.num_samples}"
        f"{f', T {config.steps}' if uses_adversary(config) else ''}"
        f"{f', {ball}' if ball is not None else ''}; {config.epochs} epochs "
        f"on {device} in {config.precision}, {memory_format}{several}"
    )
    return run


def _make_ball(config: TrainConfig) -> HardBall | SoftBall | None:
    if uses_drf(config):
        return SoftBall(
            config.epsilon,
            lambda0=config.lambda0,
            lambda_lr=config.lambda_lr,
            kappa=config.kappa,
            form=config.form,
            lambda_every=config.lambda_every,
        )
    if not uses_adversary(config) or config.method == "smoothmix":  # which ascends unbounded
        return None
    return HardBall(config.epsilon)


def _train_epoch(run: Run) -> None:
    """The batches of one epoch, or what is left of it; sums stay on the device."""
    config = run.config
    options = schedule.options(config, run.epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = schedule.learning_rate(config, run.epoch)
    if run.ball is not None:
        run.ball.epsilon = schedule.epsilon(config, run.epoch)
    run.model.train()
    batches = steps_of_an_epoch(config, len(run.train_set))
    label, left = f"epoch {run.epoch + 1}/{config.epochs}", batches - run.batch
    with Tracker(label, left, quiet=processes.rank() > 0) as tracker:
        began = time.perf_counter()
        for batch in _batches(run):
            one_step(run, batch, options)
            ended = time.perf_counter()
            run.totals.seconds += ended - began
            began = ended
            tracker.advance()
            if run.batch == batches:
                break
            if _finished(run):
                return
            if config.save_every and run.step % config.save_every == 0:
                state.save(run)
        if run.device.type == "cuda":  # the launches are ahead of the work
            torch.cuda.synchronize(run.device)
            run.totals.seconds += time.perf_counter() - began
    run.batch = 0
    if isinstance(run.ball, SoftBall):
        run.ball.end_epoch()


def _batches(run: Run) -> Iterator[Batch]:
    config = run.config
    for x, target, ids in data.batches(
        run.train_set,
        images_of_a_step(config),
        shuffle_seed=config.seed,
        epoch=run.epoch,
        start=run.batch,
        augment=config.augment,
    ):
        yield Batch(
            x.to(run.device),
            target.to(run.device),
            noise_key(config.seed, run.step),
            ids.to(run.device),
        )


def _finished(run: Run) -> bool:
    return run.config.max_steps is not None and run.step >= run.config.max_steps


def _epoch_metrics(run: Run) -> dict[str, Any]:
    images, seconds = run.totals.images, run.totals.seconds
    loss, hits, distance = (value / images for value in run.totals.sums.tolist())
    if not math.isfinite(loss):
        raise RunError(
            f"the loss of epoch {run.epoch + 1} is {loss}: training diverged; lower --lr or "
            "--epsilon"
        )
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
    batches = data.batches(run.test_set, 256, shuffle_seed=None, epoch=0)
    for number, (x, target, ids) in enumerate(batches):
        if number % processes.count() != processes.rank():
            continue
        noisy = noisy_repeat(
            x.to(run.device),
            run.config.sigma,
            1,
            seed=run.config.seed,
            image_ids=ids.to(run.device),
            stream="prediction",
        )
        with torch.no_grad(), runtime.autocast(run.device, run.config.precision):
            hits += (run.network(noisy).argmax(1) == target.to(run.device)).sum()
    processes.total(hits)
    return int(hits) / len(run.test_set)
