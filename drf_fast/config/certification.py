"""Checks of the settings of commands that smooth a network; nothing here imports torch."""

from __future__ import annotations

import re

from drf_fast.config.durations import seconds
from drf_fast.config.limits import LEAST_ALPHA
from drf_fast.config.look import AttackConfig
from drf_fast.config.options import CertifyConfig, SmoothedConfig
from drf_fast.config.ranges import check_ranges
from drf_fast.config.training import check_sigma
from drf_fast.errors import InputError


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
    if isinstance(config, CertifyConfig):
        seconds(config.timeout, "timeout")
    if config.out is not None and (not config.out.name or config.out.is_dir()):
        raise InputError(
            f"--out must name a file, got {str(config.out)!r}, which is a folder; add a name such "
            "as certificates.tsv"
        )


def shard_of(config: CertifyConfig | AttackConfig) -> tuple[int, int]:
    if config.shard is None:
        return 1, 1
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", config.shard)
    if match is None or int(match[1]) > int(match[2]):
        raise InputError(
            f"--shard must be i/k with 1 <= i <= k, 2/8 for example, got {config.shard!r}"
        )
    return int(match[1]), int(match[2])
