"""``drf-fast certify``: CERTIFY over the images of a data set, one log line each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from drf_fast import checkpoint, data, runtime
from drf_fast.certlog import CertificationLog, Row, sidecar
from drf_fast.config import CertifyConfig
from drf_fast.errors import InputError
from drf_fast.files import read_json
from drf_fast.functional import certified_radius
from drf_fast.nn import SmoothedClassifier
from drf_fast.progress import Tracker, say

# Of the training settings, those that did not shape the network.
_NOT_TRAINING = {
    "recipe", "config", "data_dir", "out", "resume", "force", "json", "max_steps", "device",
    "certify_images", "certify_n", "method_label", "memory_format",
}  # fmt: skip


def certify(config: CertifyConfig) -> Path:
    """Certify as ``config`` says and return the path of the log.

    Raises:
        InputError: a bad checkpoint, data set, setting or output, or a log of another run.
    """
    _check(config)
    path = checkpoint.locate(config.checkpoint)
    saved = checkpoint.load(path)
    trained = saved["config"]
    sigma = trained["sigma"] if config.sigma is None else config.sigma
    images = data.load(
        config.data or trained["data"],
        config.split,
        data_dir=config.data_dir or _path(trained.get("data_dir")),
    )
    shape = tuple(images.images.shape[1:])
    if images.num_classes != saved["num_classes"] or shape != tuple(saved["image_shape"]):
        raise InputError(
            f"{path} classifies images {tuple(saved['image_shape'])} into {saved['num_classes']} "
            f"classes, got {images.name} with images {shape} and {images.num_classes} classes; "
            "pass the data set that it was trained on"
        )
    indices = list(range(0, len(images), config.skip))[: config.max_images]

    device = runtime.pick_device(config.device)
    model, memory_format = runtime.place(
        checkpoint.build_model(saved, path), device, config.memory_format, config.precision, shape
    )
    classifier = SmoothedClassifier(
        model,
        images.num_classes,
        sigma,
        precision=config.precision,
        compile=config.compile,
        seed=config.seed,
    )
    out = config.out or path.parent / f"certify-s{sigma:g}-n{config.n}.tsv"
    sample = images.float_images(indices[:1]).to(device)
    batch_size = _batch_size(config, out, classifier, sample)
    description = {
        "method": trained["method_label"],
        "training": {key: trained[key] for key in trained if key not in _NOT_TRAINING},
        "checkpoint_sha256": checkpoint.sha256(path),
        "arch": saved["arch"],
        "data": images.name,
        "split": images.split,
        "fingerprint": images.fingerprint,
        "sigma": sigma,
        "n0": config.n0,
        "n": config.n,
        "alpha": config.alpha,
        "budget": config.budget,
        "seed": config.seed,
        "skip": config.skip,
        "max_images": config.max_images,
        "precision": config.precision,
        "batch_size": batch_size,
        "environment": {**runtime.environment(device), "memory_format": memory_format},
    }
    if config.resume:
        log = CertificationLog.resume(out, description)
    else:
        log = CertificationLog.create(out, description, force=config.force)
    with log:
        _certify_images(classifier, images, indices, config, batch_size, device, log)
    say(f"log: {out}")
    return out


def _certify_images(classifier, images, indices, config, batch_size, device, log) -> None:
    left = [index for index in indices if index not in log.done]
    cap = float(certified_radius(config.n, config.n, sigma=classifier.sigma, alpha=config.alpha))
    say(
        f"certifying {len(left)} of {len(indices)} images of {images.name} ({images.split}) at "
        f"sigma {classifier.sigma:g}, n {config.n:,}, alpha {config.alpha:g}; "
        f"the largest radius these allow is {cap:.3f}"
    )
    if cap == 0:
        say(f"warning: with n {config.n} and alpha {config.alpha:g} every image must abstain")
    with Tracker("certify", len(left)) as tracker:
        for index in left:
            start = time.perf_counter()
            result = classifier.certify_batch(
                images.float_images([index]).to(device),
                config.n0,
                config.n,
                config.alpha,
                batch_size,
                image_ids=torch.tensor([index], device=device),
            )
            log.append(
                Row(
                    idx=index,
                    label=int(images.labels[index]),
                    predict=int(result.label[0]),
                    radius=float(result.radius[0]),
                    seconds=time.perf_counter() - start,
                    count=int(result.count[0]),
                    n=config.n,
                    p_lower=float(result.p_lower[0]),
                )
            )
            tracker.advance(note=f"{config.n / (time.perf_counter() - start):,.0f} samples/s")


def _batch_size(
    config: CertifyConfig, out: Path, classifier: SmoothedClassifier, sample: torch.Tensor
) -> int:
    """As given, or that of the log to be resumed, or the fastest by measurement."""
    if config.batch_size != "auto":
        return config.batch_size
    if config.resume and sidecar(out).exists():
        recorded: Any = read_json(sidecar(out))
        if isinstance(recorded, dict) and isinstance(recorded.get("batch_size"), int):
            return recorded["batch_size"]
    return min(classifier.batch_size(sample), max(config.n, config.n0))


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _check(config: CertifyConfig) -> None:
    for name in ("n0", "n", "skip", "max_images", "batch_size"):
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if config.sigma is not None and not 0 < config.sigma < float("inf"):
        raise InputError(f"--sigma must be a finite number above 0, got {config.sigma}")
    if not 0 < config.alpha < 1:
        raise InputError(f"--alpha must be a probability between 0 and 1, got {config.alpha}")
    if config.resume and config.force:
        raise InputError("--resume continues a log and --force replaces it: pass one of them")
