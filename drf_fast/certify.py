"""``drf-fast certify``: CERTIFY over the images of a data set, one log line each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from drf_fast import checkpoint, data, runtime
from drf_fast.certlog import CertificationLog, Row, sidecar
from drf_fast.config import CertifyConfig, updated
from drf_fast.errors import InputError
from drf_fast.files import read_json
from drf_fast.functional import certified_radius
from drf_fast.nn import SmoothedClassifier
from drf_fast.progress import Tracker, say
from drf_fast.settings import check_sigma

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
    config = _resumed(config)
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
    out = config.out or _default_out(config, sigma)
    sample = images.float_images(indices[:1]).to(device)
    batch_size = config.batch_size
    if batch_size == "auto":
        batch_size = min(classifier.batch_size(sample), max(config.n, config.n0))
    description = {
        "method": trained["method_label"],
        "training": {key: trained[key] for key in trained if key not in _NOT_TRAINING},
        "checkpoint_sha256": saved["sha256"],
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
        "memory_format": memory_format,
        "compile": config.compile,
        "device": device.type,
        "environment": runtime.environment(device),
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


def _default_out(config: CertifyConfig, sigma: float) -> Path:
    folder = checkpoint.locate(config.checkpoint).parent
    return folder / f"certify-s{sigma:g}-n{config.n}.tsv"


def _resumed(config: CertifyConfig) -> CertifyConfig:
    """What was measured for the log to be resumed stands in for "auto"."""
    if not config.resume or config.out is None or not sidecar(config.out).exists():
        return config
    recorded: Any = read_json(sidecar(config.out))
    if not isinstance(recorded, dict):
        return config
    measured = {
        key: recorded[key]
        for key in ("batch_size", "memory_format")
        if getattr(config, key) == "auto" and key in recorded
    }
    return updated(config, measured, str(sidecar(config.out)))


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _check(config: CertifyConfig) -> None:
    for name in ("n0", "n", "skip", "max_images", "batch_size"):
        value = getattr(config, name)
        if isinstance(value, int) and not 1 <= value < 2**32:
            raise InputError(
                f"--{name.replace('_', '-')} must lie between 1 and 2^32 - 1, got {value}"
            )
    if config.sigma is not None:
        check_sigma(config.sigma)
    if not -(2**63) <= config.seed < 2**63:
        raise InputError(f"--seed must fit 64 bits, got {config.seed}")
    if not 0 < config.alpha < 1:
        raise InputError(f"--alpha must be a probability between 0 and 1, got {config.alpha}")
    if config.resume and config.force:
        raise InputError("--resume continues a log and --force replaces it: pass one of them")
