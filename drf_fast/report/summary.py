"""The statistics of a report: ACR, certified accuracy and abstention, averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drf_fast.certlog import Log
from drf_fast.report.groups import Group, group_logs
from drf_fast.report.paper import PaperRow, paper_row

RADIUS_STEP = 0.25


@dataclass(frozen=True, eq=False)
class GroupSummary:
    """One method at one sigma, averaged over its logs (training seeds).

    Attributes:
        group: the logs.
        acr: average certified radius of each log, L2 in pixel units.
        acr_mean: their mean.
        acr_std: their sample standard deviation; ``None`` for a single log.
        certified: certified accuracy in % at each radius of the report.
        abstained: share of abstentions in %.
        paper: the row of the paper's Table 1 to compare with, if there is one.
    """

    group: Group
    acr: tuple[float, ...]
    acr_mean: float
    acr_std: float | None
    certified: tuple[float, ...]
    abstained: float
    paper: PaperRow | None


@dataclass(frozen=True, eq=False)
class Summary:
    """A whole report.

    Attributes:
        groups: one entry a method and sigma.
        radii: 0, 0.25, ... up to the largest radius of a correct prediction.
        images: images in each log.
    """

    groups: tuple[GroupSummary, ...]
    radii: tuple[float, ...]
    images: int

    def setting(self, key: str) -> object:
        """A configuration value, the same for all groups that know it; ``None`` if none does."""
        values = (entry.group.setting(key) for entry in self.groups)
        return next((value for value in values if value is not None), None)


def average_certified_radius(log: Log) -> float:
    """ACR: the mean over all images of radius * 1[predict = label] (Zhai et al., 2020)."""
    return float(np.where(log.correct, log.radius, 0.0).mean())


def certified_accuracy(log: Log, radii: np.ndarray | Sequence[float]) -> np.ndarray:
    """Share (0 to 1) of all images that are predicted right with a radius of r or more, float64.

    At r = 0 it is the share predicted right and not abstained.
    """
    right = np.sort(log.radius[log.correct])
    return (right.size - np.searchsorted(right, radii, side="left")) / len(log)


def summarize(logs: Sequence[Log], *, paper: bool | None = None) -> Summary:
    """Group logs by method and sigma and average each group over its seeds.

    Args:
        logs: certification logs of the same images.
        paper: compare with Table 1 of the DRF paper; ``None``: where the logs are certificates of
            the whole MNIST test set at the paper's n and alpha (taken for granted in logs without
            configuration).

    Raises:
        InputError: logs that cannot be compared: different images, n, alpha, budget or data set,
            or logs with and without configuration in one group.
    """
    groups = group_logs(logs)
    largest = max(float(log.radius[log.correct].max(initial=0.0)) for log in logs)
    radii = tuple(RADIUS_STEP * i for i in range(int(largest / RADIUS_STEP) + 1))
    entries = tuple(_summarize_group(group, radii, paper) for group in groups)
    return Summary(groups=entries, radii=radii, images=len(logs[0]))


def _summarize_group(group: Group, radii: Sequence[float], paper: bool | None) -> GroupSummary:
    acr = tuple(average_certified_radius(log) for log in group.logs)
    certified = np.mean([certified_accuracy(log, radii) for log in group.logs], axis=0)
    return GroupSummary(
        group=group,
        acr=acr,
        acr_mean=float(np.mean(acr)),
        acr_std=float(np.std(acr, ddof=1)) if len(acr) > 1 else None,
        certified=tuple(100.0 * float(share) for share in certified),
        abstained=100.0 * float(np.mean([np.mean(log.predict == -1) for log in group.logs])),
        paper=paper_row(group, paper),
    )
