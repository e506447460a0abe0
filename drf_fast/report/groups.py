"""Grouping logs, and refusing logs that must not be compared.

An ACR depends on the images, n and alpha, so all logs in a report must share these. The logs of one
group (training seeds of one method at one sigma) must all have a configuration or none. Logs of one
method whose training differs in more than the seed are separate groups, named by the difference;
``names.py`` names logs without a configuration.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from drf_fast.certification.log import Log, sidecar
from drf_fast.certification.log.audit import certificates, is_usable
from drf_fast.config.training import trained
from drf_fast.errors import InputError
from drf_fast.report.names import rows_of
from drf_fast.report.shards import Missing, join_shards, missing

SETTINGS = ("n", "alpha", "n0", "budget", "radius", "tolerance", "data", "split", "fingerprint")


@dataclass(frozen=True, eq=False)
class Group:
    """The logs of one method at one sigma (``None`` if neither file nor name contains it).

    ``variant`` distinguishes groups of one method: the training settings in which they differ.
    """

    method: str
    sigma: float | None
    logs: tuple[Log, ...]
    variant: str = ""

    @property
    def name(self) -> str:
        """The method and, if needed, its variant."""
        return f"{self.method} {self.variant}".strip()

    @property
    def sigma_text(self) -> str:
        """Sigma as tables show it, "-" if it is unknown."""
        return "-" if self.sigma is None else f"{self.sigma:g}"

    @property
    def label(self) -> str:
        """Name and sigma, as figures show them."""
        return self.name if self.sigma is None else f"{self.name}, σ = {self.sigma_text}"

    @property
    def in_words(self) -> str:
        """Name and sigma, as sentences have them."""
        return self.name if self.sigma is None else f"{self.name} at sigma = {self.sigma_text}"

    def setting(self, key: str) -> Any:
        """The value of a configuration key that the logs share; ``None`` if unknown."""
        return setting(self.logs[0], key)

    @property
    def largest(self) -> float:
        """The largest certified radius, of wrong predictions too."""
        return max(float(log.radius.max()) for log in self.logs)

    @property
    def cap(self) -> float | None:
        """The largest radius that n, alpha and sigma allow; ``None`` if one is unknown."""
        n, alpha = self.setting("n"), self.setting("alpha")
        if self.sigma is None or n is None or alpha is None or self.logs[0].predictions:
            return None
        # The anytime bound takes a part of alpha, the distance of sound noise lowers p.
        if self.setting("budget") not in (None, "fixed") or self.setting("sound"):
            unanimous = certificates(self.logs[0].config or {}, [n], [n])
            if unanimous is not None:
                return float(unanimous[1][0])
        return largest_radius(self.sigma, n, alpha)

    @property
    def knows_abstentions(self) -> bool:
        """Whether the share of abstentions is known; see ``skips_wrong``."""
        return not any(map(skips_wrong, self.logs))

    def missing(self) -> list[Missing]:
        """Images and shards that the configurations of its logs name but the logs lack."""
        return [lack for lack in map(missing, self.logs) if lack is not None]


def setting(log: Log, key: str) -> Any:
    """The value of a configuration key; ``None`` if unknown.

    In our logs without a configuration the column n tells the number of samples, and the budget:
    it is the same for all images with the fixed budget, else its largest value is at most the
    planned n.
    """
    value = (log.config or {}).get(key)
    if value is not None or log.n is None or not log.n.any():
        return value
    drawn = log.n[log.n > 0]  # 0 where the class was skipped as wrong
    if key == "n":
        return int(drawn.max())
    if key == "budget" and log.config is None:
        return "fixed" if drawn.min() == drawn.max() else "anytime"
    return None


def skips_wrong(log: Log) -> bool:
    """Whether images whose chosen class is wrong were skipped: these might have abstained."""
    return bool((log.config or {}).get("skip_wrong")) or (log.n is not None and 0 in log.n)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """sigma * Phi^-1(alpha^(1/n)): the certified radius if all n samples agree.

    0 if that is below 1/2. Computed from 1 - alpha^(1/n), which does not lose digits where
    alpha^(1/n) is close to 1.

    Reference: Cohen, Rosenfeld, Kolter (2019), section 4.
    """
    tail = -math.expm1(math.log(alpha) / n)
    return 0.0 if tail >= 0.5 else -sigma * NormalDist().inv_cdf(tail)


def group_logs(logs: Sequence[Log], *, any_images: bool = False) -> list[Group]:
    """Join shards and sort the logs into groups, in the order of their first log.

    Args:
        logs: certification logs.
        any_images: the logs may be of different images of one data set.

    Raises:
        InputError: no log, a log given twice, or logs that cannot be joined or compared.
    """
    if not logs:
        raise InputError("no log to report: expected one or more certification logs; name them")
    _refuse_twice(logs)
    logs = join_shards(logs)
    _refuse_mixed_kinds(logs)
    _refuse_mixed_noise(logs)
    for log in logs:
        for key in ("sigma", "n", "alpha"):
            _refuse_no_number(log.path, key, (log.config or {}).get(key))
    members: dict[tuple[Any, ...], list[Log]] = {}
    names: dict[tuple[Any, ...], str] = {}
    for log, row in zip(logs, rows_of(logs), strict=True):
        members.setdefault((row.key, row.sigma), []).append(log)
        names[row.key, row.sigma] = row.name
    groups = []
    for key, alike in members.items():
        _refuse_half_known(alike)
        groups += _by_training(names[key], key[1], alike)
    for group in groups:
        _refuse_same_network(group)
    for key in SETTINGS:
        _refuse_mixed(key, [log for log in logs if _knows(log, key)])
    if not any_images:
        _refuse_other_images(logs)
    for group in groups:
        _refuse_above_cap(group)
    return groups


def on_common_images(groups: Sequence[Group]) -> list[Group]:
    """The groups with their logs restricted to the images that all of them hold.

    Raises:
        InputError: there is no such image, or two logs give one different labels.
    """
    first, *others = (log for group in groups for log in group.logs)
    common = first.idx
    for log in others:
        common = np.intersect1d(common, log.idx)
        if not common.size:
            raise InputError(
                f"--common leaves no image: expected images that all logs hold, got none that "
                f"{log.path} ({_images(log)}) shares with the logs before it, from {first.path} "
                f"({_images(first)}) on; leave one of them out"
            )
    restricted = [
        dataclasses.replace(group, logs=tuple(restricted_to(log, common) for log in group.logs))
        for group in groups
    ]
    _refuse_other_images([log for group in restricted for log in group.logs])
    return restricted


def restricted_to(log: Log, images: Sequence[int] | np.ndarray) -> Log:
    """The log with the lines of these images alone."""
    kept = np.isin(log.idx, images)
    columns: dict[str, Any] = {
        field.name: getattr(log, field.name)[kept]
        for field in dataclasses.fields(Log)
        if isinstance(getattr(log, field.name), np.ndarray)
    }
    return dataclasses.replace(log, **columns)


def _refuse_mixed_kinds(logs: Sequence[Log]) -> None:
    for log in logs[1:]:
        if log.predictions != logs[0].predictions:
            radius, class_ = (log, logs[0]) if logs[0].predictions else (logs[0], log)
            raise InputError(
                f"cannot compare {radius.path} (certificates) with {class_.path} (predictions, "
                "which have no radius): expected logs of one kind; report them separately"
            )


def _refuse_no_number(path: Path, key: str, value: Any) -> None:
    if value is not None and not is_usable(key, value):
        bound = "between 0 and 1" if key == "alpha" else "above 0"
        raise InputError(
            f"{sidecar(path)}: expected {key} to be a number {bound}, got {str(value)[:40]!r}; "
            "restore the file that belongs to the log"
        )


def _refuse_twice(logs: Sequence[Log]) -> None:
    seen: set[Path] = set()
    for log in logs:
        if log.path.resolve() in seen:
            raise InputError(
                f"{log.path} is given twice: expected each log once, or seeds count double; "
                "remove one"
            )
        seen.add(log.path.resolve())


def _refuse_half_known(logs: Sequence[Log]) -> None:
    known = [log for log in logs if log.config is not None]
    unknown = [log for log in logs if log.config is None]
    if known and unknown:
        raise InputError(
            f"cannot average {known[0].path} with {unknown[0].path}: expected the configuration of "
            f"both, got none ({sidecar(unknown[0].path).name}) for the second, so its alpha is "
            "unknown; restore it, or report them separately"
        )
    for key in (*SETTINGS, "training"):
        given = [log for log in logs if setting(log, key) is not None]
        absent = [log for log in logs if log not in given]
        if given and absent:
            both = "both configurations" if known else "both logs"
            raise InputError(
                f"cannot average {given[0].path} with {absent[0].path}: expected {key} in {both}, "
                "got none in the second; report them separately"
            )


def _refuse_same_network(group: Group) -> None:
    """Refuse several logs of one network in a group, which would be averaged as seeds."""
    networks: dict[str, Path] = {}
    for log in group.logs:
        if (log.config or {}).get("checkpoint_sha256") is None:
            continue
        network = str((log.config or {})["checkpoint_sha256"])
        if network in networks:
            raise InputError(
                f"cannot average {networks[network]} with {log.path} as seeds of {group.name}: "
                "expected two networks, got one (the same checkpoint_sha256); leave one of these "
                "logs out"
            )
        networks[network] = log.path


def _by_training(method: str, sigma: float | None, logs: Sequence[Log]) -> list[Group]:
    """One group for each training, named by the settings in which it differs from the others."""
    alike: dict[str, list[Log]] = {}
    for log in logs:
        alike.setdefault(json.dumps(_training(log), sort_keys=True), []).append(log)
    trainings = [_training(of[0]) for of in alike.values()]
    differ = [
        key
        for key in sorted(set().union(*trainings))
        if any(training.get(key) != trainings[0].get(key) for training in trainings)
    ]
    return [
        Group(method, sigma, tuple(of), " ".join(f"{key}={training.get(key)}" for key in differ))
        for training, of in zip(trainings, alike.values(), strict=True)
    ]


def _training(log: Log) -> dict[str, Any]:
    training = (log.config or {}).get("training")
    known = trained(training) if isinstance(training, dict) else {}
    # A log that is older than a setting lacks it, which counts as None.
    return {key: value for key, value in known.items() if key != "seed" and value is not None}


def _knows(log: Log, key: str) -> bool:
    """Whether the setting is known; of the two ways to stop, one may be None in a configuration."""
    stops = key in ("radius", "tolerance") and (log.config or {}).get("budget") is not None
    return stops or setting(log, key) is not None


def _refuse_mixed(key: str, logs: Sequence[Log]) -> None:
    for log in logs[1:]:
        first, other = setting(logs[0], key), setting(log, key)
        if first != other:
            raise InputError(
                f"cannot compare {logs[0].path} ({key} = {first}) with {log.path} "
                f"({key} = {other}): expected one {key} in a report; report them separately"
            )


def is_sound(log: Log) -> bool:
    """Whether its certificates used noise of whole levels."""
    return bool((log.config or {}).get("sound"))


def _refuse_mixed_noise(logs: Sequence[Log]) -> None:
    for log in logs[1:]:
        if is_sound(log) != is_sound(logs[0]):
            pair = (logs[0], log) if is_sound(logs[0]) else (log, logs[0])
            raise InputError(
                f"cannot compare {pair[0].path} (certified with --sound) with {pair[1].path} "
                "(without): expected one kind of certificate in a report; report them separately"
            )


def _refuse_other_images(logs: Sequence[Log]) -> None:
    first = logs[0]
    order = np.argsort(first.idx)
    for log in logs[1:]:
        other = np.argsort(log.idx)
        if not np.array_equal(first.idx[order], log.idx[other]):
            shared = np.intersect1d(first.idx, log.idx).size
            common = "report on those that all logs share with --common, " if shared else ""
            raise InputError(
                f"cannot compare {first.path} ({_images(first)}) with {log.path} ({_images(log)}): "
                f"expected the same images in each log; certify the same images, {common}or report "
                "them separately"
            )
        differ = np.flatnonzero(first.label[order] != log.label[other])
        if differ.size:
            at = differ[0]
            raise InputError(
                f"cannot compare {first.path} with {log.path}: expected one data set, got label "
                f"{first.label[order][at]} and label {log.label[other][at]} for image "
                f"{first.idx[order][at]}; report them separately"
            )


def _images(log: Log) -> str:
    return f"{len(log)} images from {log.idx.min()} to {log.idx.max()}"


def _refuse_above_cap(group: Group) -> None:
    for log in group.logs:
        if group.cap is not None and log.radius.max() > group.cap * (1 + 1e-9):
            raise InputError(
                f"{log.path} does not fit {sidecar(log.path).name}: expected radii of at most "
                f"{group.cap:.6f} (sigma {group.sigma}, n {group.setting('n')}, alpha "
                f"{group.setting('alpha')}), got {log.radius.max()}; restore the pair that belongs "
                "together"
            )
