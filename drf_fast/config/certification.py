"""Checks of the settings of commands that smooth a network; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drf_fast.config.durations import seconds
from drf_fast.config.limits import LEAST_ALPHA
from drf_fast.config.look import AttackConfig
from drf_fast.config.options import CertifyConfig, SmoothedConfig, TrainConfig
from drf_fast.config.ranges import check_ranges
from drf_fast.config.shards import Shard
from drf_fast.config.training import check_resume, check_sigma
from drf_fast.config.values import names_code
from drf_fast.errors import InputError


def certify_settings(
    checkpoint: Path,
    trained: TrainConfig,
    test_images: int,
    *,
    count: int | None = None,
    skip: int | None = None,
    **terms: Any,
) -> CertifyConfig:
    """How the network of a training run is certified.

    Args:
        checkpoint: its checkpoint or run folder.
        trained: how it was trained, and on which machine.
        test_images: size of the test set.
        count: the most images to certify; without ``skip`` evenly spaced, and by default as many as
            after training.
        skip: take every K-th image.
        terms: further settings, ``n`` for example.
    """
    if skip is None:
        count = count or TrainConfig.certify_images
        skip = max(1, test_images // count)
    return CertifyConfig(
        checkpoint=checkpoint,
        data_dir=trained.data_dir,  # the images may have moved since the checkpoint was written
        arch=trained.arch if names_code(trained.arch) else None,
        skip=skip,
        max_images=count,
        precision="auto" if trained.precision == "fp32" else trained.precision,
        device=trained.device,
        threads=trained.threads,
        compile=trained.compile,
        timeout=trained.timeout,
        **terms,
    )


def check_settings(config: SmoothedConfig) -> None:
    """Refuse numbers out of range before anything is read.

    Raises:
        InputError: one sentence that names the flag.
    """
    check_ranges(config)
    if config.sigma is not None:
        check_sigma(config.sigma)
    if not LEAST_ALPHA <= config.alpha < 1:
        raise InputError(
            f"--alpha must be a probability between 0 and 1, got {config.alpha}; the least that "
            f"can be computed with is {LEAST_ALPHA:g}"
        )
    if isinstance(config, (CertifyConfig, AttackConfig)):
        check_resume(config, "log")
    if isinstance(config, CertifyConfig):
        seconds(config.timeout, "timeout")
    if config.out is not None and (not config.out.name or config.out.is_dir()):
        raise InputError(
            f"--out must name a file, got {str(config.out)!r}, which is a folder; add a name such "
            "as certificates.tsv"
        )


def shard_of(config: CertifyConfig | AttackConfig) -> Shard:
    """The part of the images that ``--shard`` names; without it all of them, part 1 of 1.

    Raises:
        InputError: not i/k.
    """
    shard = Shard(1, 1) if config.shard is None else Shard.parse(config.shard)
    if shard is None:
        raise InputError(
            f"--shard must be i/k with 1 <= i <= k, 2/8 for example, got {config.shard!r}"
        )
    return shard
