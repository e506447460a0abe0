"""``drf-fast train``: the training loop, readable in one sitting."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from drf_fast import certify, checkpoint, data, methods, models, report, runtime
from drf_fast.adversary import HardBall, SoftBall
from drf_fast.certlog import sidecar
from drf_fast.config import CertifyConfig, TrainConfig, names_code, to_dict
from drf_fast.errors import InputError, RunError
from drf_fast.files import new_folder, read_json, write_json
from drf_fast.functional import noise_key, noisy_repeat
from drf_fast.methods.common import Batch, MethodOptions
from drf_fast.metrics import Metrics, last_metrics
from drf_fast.models import normalize
from drf_fast.progress import Tracker, say
from drf_fast.settings import (
    check,
    method_label,
    refuse_other_settings,
    run_folder,
    uses_adversary,
    uses_drf,
)

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
    folder = train(config)
    metrics = last_metrics(folder)
    if metrics and not config.json:
        accuracy = 100 * metrics["test_accuracy_under_noise"]
        print(f"accuracy under noise (one draw each, all test images): {accuracy:.2f} %")
    log = _certify(config, folder) if config.certify_images else None
    if log is not None:
        say(f"curve: {folder / 'curve.png'}")
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


@dataclasses.dataclass
class Run:
    """All that a training run holds in memory."""

    config: TrainConfig
    folder: Path
    train_set: data.Dataset
    test_set: data.Dataset
    device: torch.device
    memory_format: str
    model: torch.nn.Module
    network: Any  # the model, compiled if asked for
    optimizer: torch.optim.Optimizer
    ball: HardBall | SoftBall | None
    epoch: int = 0
    batch: int = 0  # of the epoch; above 0 only after --max-steps
    step: int = 0


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run folder.

    Raises:
        InputError: bad settings, data or output folder, or a run of other settings to resume.
        RunError: training diverged.
    """
    check(config)
    if config.normalize == "auto":
        config = dataclasses.replace(config, normalize=normalize.for_data(config.data))
    folder = run_folder(config)
    run = _prepare(config, folder)
    new_folder(folder, force=config.force, resume=config.resume)
    if config.force:  # an old network beside new settings would be taken for the new run's
        _remove_run(folder)
    write_json(
        folder / "config.json",
        {
            **to_dict(config),
            "method_label": method_label(config),
            "memory_format": run.memory_format,
            "fingerprint": run.train_set.fingerprint,
            "environment": runtime.environment(run.device),
        },
    )
    log = Metrics(folder, run.epoch)
    try:
        while run.epoch < config.epochs and not _finished(run):
            started = time.perf_counter()
            totals = _train_epoch(run)
            if run.batch:  # --max-steps ended within the epoch
                _save(run)
                break
            if isinstance(run.ball, SoftBall):
                run.ball.end_epoch()
            log.write(_epoch_metrics(run, totals, time.perf_counter() - started))
            run.epoch += 1
            _save(run)
    finally:
        log.close()
    say(f"run folder: {folder}")
    return folder


def _prepare(config: TrainConfig, folder: Path) -> Run:
    """Data, network, optimizer and ball; from the checkpoint in the folder when resuming."""
    saved_path = folder / checkpoint.FILE_NAME
    saved = checkpoint.load(saved_path) if config.resume and saved_path.exists() else None
    train_set = data.load(config.data, "train", data_dir=config.data_dir, limit=config.train_images)
    test_set = data.load(config.data, "test", data_dir=config.data_dir)
    if saved:
        refuse_other_settings(config, saved["config"], train_set.fingerprint, folder)
    device = runtime.pick_device(config.device)
    shape = train_set.image_shape
    if test_set.image_shape != shape:
        raise InputError(
            f"{config.data_dir} has training images of shape {shape} and test images of shape "
            f"{test_set.image_shape}: expected one shape; resize them"
        )
    torch.manual_seed(noise_key(config.seed, 2**63) % 2**63)  # a step that training never takes
    model = models.build(config.arch, train_set.num_classes, shape, config.normalize)
    memory_format = saved["config"]["memory_format"] if saved else config.memory_format
    rows = min(config.batch_size, len(train_set)) * config.num_samples
    model, memory_format = runtime.place(
        model, device, memory_format, config.precision, shape, rows
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    ball = _make_ball(config)
    run = Run(
        config, folder, train_set, test_set, device, memory_format, model,
        torch.compile(model) if config.compile else model, optimizer, ball,
    )  # fmt: skip
    adversary = f", {ball}" if ball is not None else ""
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if isinstance(ball, SoftBall):
            ball.load_state_dict(saved["ball"])
        run.epoch, run.batch, run.step = saved["epoch"], saved["batch"], saved["step"]
        say(f"resuming {folder} at epoch {run.epoch}, step {run.step}")
    say(
        f"training {config.arch} with {method_label(config)} at sigma {config.sigma:g} on "
        f"{len(train_set):,} images of {config.data}, m {config.num_samples}"
        f"{f', T {config.steps}' if ball is not None else ''}{adversary}; {config.epochs} epochs "
        f"on {device} in {config.precision}, {memory_format}"
    )
    return run


def _make_ball(config: TrainConfig) -> HardBall | SoftBall | None:
    if not uses_adversary(config):
        return None
    if not uses_drf(config):
        return HardBall(config.epsilon)
    return SoftBall(
        config.epsilon,
        lambda0=config.lambda0,
        lambda_lr=config.lambda_lr,
        kappa=config.kappa,
        form=config.form,
        lambda_every=config.lambda_every,
    )


def _train_epoch(run: Run) -> dict[str, Any]:
    """The batches of one epoch, or what is left of it; sums stay on the device."""
    config, method = run.config, methods.get(run.config.method)
    options = MethodOptions(
        sigma=config.sigma,
        num_samples=config.num_samples,
        steps=config.steps,
        grad_norm=config.grad_norm,
        consistency_lam=config.consistency_lam,
        consistency_eta=config.consistency_eta,
    )
    drops = sum(run.epoch >= round(drop * config.epochs) for drop in config.lr_drops)
    for group in run.optimizer.param_groups:
        group["lr"] = config.lr * 0.1**drops
    if run.ball is not None and config.warmup_epochs:
        run.ball.epsilon = config.epsilon * min(1.0, (run.epoch + 1) / config.warmup_epochs)
    totals = {"images": 0, "distances": 0}
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)  # loss, hits, distance
    run.model.train()
    batches = math.ceil(len(run.train_set) / config.batch_size)
    with Tracker(f"epoch {run.epoch + 1}/{config.epochs}", batches - run.batch) as tracker:
        for batch in _batches(run):
            try:
                with runtime.autocast(run.device, config.precision):
                    result = method.step(run.network, batch, options, run.ball)
            except ValueError as error:
                raise RunError(f"training failed at step {run.step}: {error}") from error
            run.optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            run.optimizer.step()
            hits = result.logits.argmax(1) == batch.target.repeat_interleave(config.num_samples)
            sums[0] += result.loss.detach().double() * len(batch.target)
            sums[1] += hits.double().mean() * len(batch.target)
            if result.distance is not None:
                sums[2] += result.distance.double().sum()
                totals["distances"] += len(batch.target)
                if isinstance(run.ball, SoftBall):
                    run.ball.update(result.distance)
            totals["images"] += len(batch.target)
            run.step += 1
            run.batch += 1
            tracker.advance()
            if _finished(run) and run.batch < batches:
                return totals
    run.batch = 0
    loss, hits_sum, distance = sums.tolist()
    return {**totals, "loss": loss, "hits": hits_sum, "distance": distance}


def _batches(run: Run) -> Iterator[Batch]:
    config = run.config
    for x, target, ids in data.batches(
        run.train_set,
        config.batch_size,
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


def _epoch_metrics(run: Run, totals: dict[str, Any], seconds: float) -> dict[str, Any]:
    loss = totals["loss"] / totals["images"]
    if not math.isfinite(loss):
        raise RunError(
            f"the loss of epoch {run.epoch + 1} is {loss}: training diverged; lower --lr or "
            "--epsilon"
        )
    metrics = {
        "epoch": run.epoch + 1,
        "step": run.step,
        "loss": loss,
        "train_accuracy_under_noise": totals["hits"] / totals["images"],
        "test_accuracy_under_noise": accuracy_under_noise(run),
        "lr": run.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "images_per_second": totals["images"] / seconds,
    }
    if totals["distances"]:
        metrics["distance"] = totals["distance"] / totals["distances"]
        metrics["epsilon"] = float(run.ball.epsilon) if run.ball is not None else 0.0
    if isinstance(run.ball, SoftBall):
        metrics["lambda"] = float(run.ball.lam)
    return metrics


def accuracy_under_noise(run: Run) -> float:
    """Share of test images classified right under one draw of the noise each."""
    hits = torch.zeros((), dtype=torch.int64, device=run.device)
    run.model.eval()
    for x, target, ids in data.batches(run.test_set, 256, shuffle_seed=None, epoch=0):
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
    return int(hits) / len(run.test_set)


def _save(run: Run) -> None:
    content = {
        "model": run.model.state_dict(),
        "arch": run.config.arch,
        "num_classes": run.train_set.num_classes,
        "image_shape": list(run.train_set.image_shape),
        "config": {
            **to_dict(run.config),
            "method_label": method_label(run.config),
            "memory_format": run.memory_format,
            "fingerprint": run.train_set.fingerprint,
        },
        "optimizer": run.optimizer.state_dict(),
        "epoch": run.epoch,
        "batch": run.batch,
        "step": run.step,
    }
    if isinstance(run.ball, SoftBall):
        content["ball"] = run.ball.state_dict()
    checkpoint.save(run.folder / checkpoint.FILE_NAME, content)
