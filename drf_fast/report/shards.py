"""Joining the logs of the shards of one run, and finding what a log has not certified yet.

``drf-fast certify --shard i/k`` (i from 1 to k) writes a log of its share of the images. All k
together equal the log that one process would have written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.certification.log import Log, sidecar
from drf_fast.certification.log.audit import is_usable
from drf_fast.certification.log.sidecar import ENVIRONMENT, ENVIRONMENTS_RESUMED, only_trained
from drf_fast.config.shards import Shard
from drf_fast.errors import InputError

_MOST_IMAGES = 2 * 10**7
# Settings that may differ between shards: "auto" may choose differently on each machine. Not the
# batch size, since it determines which images a shard gets.
_MAY_DIFFER = {
    "shard", ENVIRONMENT, ENVIRONMENTS_RESUMED, "memory_format", "device", "compile",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Missing:
    """What a log lacks.

    Attributes:
        path: the log.
        shards: missing shards, as "i/k".
        images: the images without a certificate, if the configuration determines them.
        expected: total number of images, if known.
    """

    path: Path
    shards: tuple[str, ...]
    images: np.ndarray | None
    expected: int | None

    def __str__(self) -> str:
        parts = []
        if self.shards:
            parts.append(f"shard{'s' * (len(self.shards) > 1)} {_some(self.shards)}")
        if self.images is not None and self.expected is not None:
            parts.append(f"{len(self.images):,} of {self.expected:,} images ({_some(self.images)})")
        return f"{self.path.name} lacks {' and '.join(parts)}"


def join_shards(logs: Sequence[Log]) -> list[Log]:
    """Each set of shards as one log in index order, at the place of its first; others unchanged.

    Raises:
        InputError: shards that overlap, or of one network but not of one run.
    """
    runs: dict[str, list[Log]] = {}
    for log in logs:
        runs.setdefault(_run_of(log), []).append(log)
    _refuse_other_runs([members[0] for members in runs.values()])
    joined = [_join(members) for members in runs.values()]
    for log in joined:
        if len(log) == 0:
            raise InputError(
                f"{log.path} holds no certificates: expected at least one line below the header; "
                "finish the run with --resume, or give its other shards"
            )
    return joined


def fullest(logs: Sequence[Log]) -> Log:
    """The log that stands for a network with several.

    Of most images, of these the largest n, and of these one that did not stop early.
    """

    def size(log: Log) -> tuple[int, float, bool]:
        n = _setting(log, "n")
        whole = _setting(log, "budget") in (None, "fixed")
        return len(log), n if is_usable("n", n) else 0, whole

    return max(logs, key=size)


def missing(log: Log) -> Missing | None:
    """The images and shards that the configuration of ``log`` names and the log lacks, if any.

    Raises:
        InputError: the log contains images that its configuration excludes.
    """
    absent: tuple[str, ...] = ()
    if log.parts:
        count = _shard(log).count
        absent = tuple(f"{i}/{count}" for i in range(1, count + 1) if i not in log.parts)
    total = _setting(log, "indices_total")
    if total is None:
        return Missing(log.path, absent, None, None) if absent else None
    skip = _setting(log, "skip")
    step = 1 if skip is None else _count(log, "skip", skip)
    expected = step * np.arange(_count(log, "indices_total", total), dtype=np.int64)
    foreign = np.setdiff1d(log.idx, expected)
    if foreign.size:
        raise InputError(
            f"{log.path} does not fit {sidecar(log.path).name}: expected images from 0 to "
            f"{expected[-1]} in steps of {step}, got image {foreign[0]}; restore the pair that "
            "belongs together"
        )
    images = np.setdiff1d(expected, log.idx)
    if not absent and images.size == 0:
        return None
    return Missing(log.path, absent, images, len(expected))


def _join(logs: list[Log]) -> Log:
    if _setting(logs[0], "shard") is None:
        return logs[0]
    count = _shard(logs[0]).count
    parts: dict[int, Path] = {}
    owner: dict[int, Path] = {}
    for log in logs:
        number, of = _shard(log)
        if of != count:
            raise InputError(
                f"cannot join {logs[0].path} (shard {_setting(logs[0], 'shard')}) with {log.path} "
                f"(shard {_setting(log, 'shard')}): expected shards of one division; give those of "
                "one"
            )
        if number in parts:
            raise InputError(
                f"cannot join {parts[number]} with {log.path}: expected each shard once, got shard "
                f"{number}/{of} twice; remove one"
            )
        parts[number] = log.path
        for image in log.idx.tolist():
            if image in owner:
                raise InputError(
                    f"cannot join {owner[image]} with {log.path}: expected shards without common "
                    f"images, got image {image} in both; certify one of them again"
                )
            owner[image] = log.path
    order = np.argsort(np.concatenate([log.idx for log in logs]))
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(log, field.name) for log in logs])[order]
        for field in dataclasses.fields(Log)
        if isinstance(getattr(logs[0], field.name), np.ndarray)
    }
    return dataclasses.replace(logs[0], parts=dict(sorted(parts.items())), **columns)


def _run_of(log: Log) -> str:
    """A key that the shards of one run share; a log that is no shard has its own."""
    if _setting(log, "shard") is None:
        return f"log {id(log)}"
    columns = "ours" if log.count is not None else "field"
    return columns + json.dumps(_identity(log), sort_keys=True)


def _identity(log: Log) -> dict[str, Any]:
    return {k: v for k, v in only_trained(log.config or {}).items() if k not in _MAY_DIFFER}


def _refuse_other_runs(firsts: Sequence[Log]) -> None:
    """Refuse shards of one network and sigma with different settings: they cannot be one run."""
    seen: dict[str, Log] = {}
    for log in firsts:
        config = log.config or {}
        if config.get("shard") is None or config.get("checkpoint_sha256") is None:
            continue
        network = json.dumps([config.get(k) for k in ("checkpoint_sha256", "method", "sigma")])
        if network in seen:
            one, two = _identity(seen[network]), _identity(log)
            keys = [k for k in sorted(one.keys() | two.keys()) if one.get(k) != two.get(k)]
            values = ", ".join(f"{k} {one.get(k)} and {two.get(k)}" for k in keys)
            raise InputError(
                f"cannot join {seen[network].path} with {log.path}: expected shards of one run, "
                f"got {values or 'other columns'}; report them separately"
            )
        seen[network] = log


def _shard(log: Log) -> Shard:
    text = _setting(log, "shard")
    shard = Shard.parse(text)
    if shard is None:
        raise InputError(
            f"{sidecar(log.path)}: expected shard to be 'i/k' with i from 1 to k, got {text!r}; "
            "restore the file that belongs to the log"
        )
    return shard


def _count(log: Log, key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_IMAGES:
        raise InputError(
            f"{sidecar(log.path)}: expected {key} to be an integer from 1 to {_MOST_IMAGES}, got "
            f"{value!r}; restore the file that belongs to the log"
        )
    return value


def _setting(log: Log, key: str) -> Any:
    return (log.config or {}).get(key)


def _some(items: Sequence[object] | np.ndarray) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
