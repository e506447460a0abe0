"""The statistics of a report: ACR, certified accuracy and abstention, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drf_fast.certification.log import Log
from drf_fast.report.compare import Comparison, compare
from drf_fast.report.groups import Group, group_logs, on_common_images
from drf_fast.report.intervals import clopper_pearson
from drf_fast.report.paper import PaperRow, paper_row
from drf_fast.report.shards import Missing

RADIUS_STEP, _MOST_RADII = 0.25, 24
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, eq=False)
class GroupSummary:
    """One method at one sigma, averaged over its logs (training seeds).

    Attributes:
        group: the logs.
        acr: average certified radius of each log, L2 in pixel units.
        acr_mean: their mean.
        acr_std: their sample standard deviation; ``None`` for a single log.
        certified: certified accuracy in % at each radius of the report.
        lower, upper: its 95 % interval over images (not over seeds) in %, see ``intervals``.
        abstained: share of abstentions in %; None if unknown (``Group.knows_abstentions``).
        at_cap: share in % of images that are predicted right with the largest radius that sigma, n
            and alpha allow; ``None`` where one is unknown.
        p_quantiles: of p_lower over images and seeds at ``QUANTILES``; each is the p_lower of an
            image, ``None`` where that image has nothing certified.
        paper: the row of the paper's Table 1 to compare with, if there is one.
        comparison: paired difference to the first group of the report, if it was asked for.
    """

    group: Group
    acr: tuple[float, ...]
    acr_mean: float
    acr_std: float | None
    certified: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    abstained: float | None
    at_cap: float | None
    p_quantiles: tuple[float | None, ...]
    paper: PaperRow | None
    comparison: Comparison | None = None


@dataclass(frozen=True, eq=False)
class Summary:
    """A whole report.

    Attributes:
        groups: one entry per method and sigma.
        radii: those requested, or 0, 0.25, ... up to the largest radius of a correct prediction.
        images: number of images in each log.
        of_logs: the smallest and the largest number of images that the logs hold, if the report is
            on fewer, those that all of them share; else None.
        missing: images and shards that the logs lack.
        predictions: whether the logs are of PREDICT: nothing is certified, ``certified`` has the
            accuracy only, at radius 0, and the ACR has no meaning.
    """

    groups: tuple[GroupSummary, ...]
    radii: tuple[float, ...]
    images: int
    missing: tuple[Missing, ...] = ()
    predictions: bool = False
    of_logs: tuple[int, int] | None = None

    @property
    def envelope(self) -> tuple[tuple[float, GroupSummary], ...]:
        """At each radius the highest certified accuracy in %, and the group that has it."""
        best = [max(self.groups, key=lambda e: e.certified[at]) for at in range(len(self.radii))]
        return tuple((entry.certified[at], entry) for at, entry in enumerate(best))

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


def certified_p(log: Log, sigma: float | None) -> np.ndarray | None:
    """Lower bound of the probability of the true class of each image, float64; 0 where none is.

    An abstention or a wrong prediction certifies nothing, as in the ACR. If the log has no column
    p_lower, it is Phi(radius / sigma), as exact as the logged radius; ``None`` without sigma.

    Reference:
        Sun et al. 2024 (the distribution of p beside the ACR, which over-rewards easy images).
    """
    if log.p_lower is not None:
        return np.where(log.correct, log.p_lower, 0.0)
    if sigma is None:
        return None
    scaled = log.radius / (-sigma * math.sqrt(2.0))
    return np.where(log.correct, [0.5 * math.erfc(z) for z in scaled.tolist()], 0.0)


def summarize(
    logs: Sequence[Log],
    *,
    paper: bool | None = None,
    compare_groups: bool = False,
    radii: Sequence[float] | None = None,
    common: bool = False,
) -> Summary:
    """Group logs by method and sigma and average each group over its seeds.

    Args:
        logs: certification logs of the same images.
        paper: compare with Table 1 of the DRF paper; ``None``: if the logs are certificates of the
            whole MNIST test set at the paper's n and alpha (which are assumed in logs without
            configuration).
        compare_groups: add the paired difference of each other group to the first.
        radii: radii of certified accuracy; ``None``: chosen from the logs.
        common: restrict logs of different images to those that all of them share.

    Raises:
        InputError: logs that cannot be joined or compared: different images, n, alpha, budget or
            data set, or logs with and without configuration in one group.
    """
    groups = group_logs(logs, any_images=common)
    lacks = tuple(lack for group in groups for lack in group.missing())
    sizes = [len(log) for group in groups for log in group.logs]
    groups = on_common_images(groups) if common else groups
    joined = [log for group in groups for log in group.logs]
    predictions = joined[0].predictions
    if predictions:
        radii, paper = (0.0,), False
    radii = _usual_radii(joined) if radii is None else tuple(radii)
    entries = tuple(
        _summarize_group(
            group,
            radii,
            paper,
            compare(groups[0], group, radii) if compare_groups and group is not groups[0] else None,
        )
        for group in groups
    )
    images, of_logs = len(joined[0]), (min(sizes), max(sizes))
    if max(sizes) == images:
        return Summary(entries, radii, images, lacks, predictions)
    # What a log lacks is no common image.
    return Summary(entries, radii, images, (), predictions, of_logs)


def _usual_radii(logs: Sequence[Log]) -> tuple[float, ...]:
    largest = max(float(log.radius[log.correct].max(initial=0.0)) for log in logs)
    step = RADIUS_STEP
    while largest / step >= _MOST_RADII:  # published logs may have radii in units of 0..255
        step *= 2
    return tuple(step * i for i in range(int(largest / step) + 1))


def _summarize_group(
    group: Group, radii: Sequence[float], paper: bool | None, comparison: Comparison | None
) -> GroupSummary:
    acr = tuple(average_certified_radius(log) for log in group.logs)
    certified = np.mean([certified_accuracy(log, radii) for log in group.logs], axis=0)
    images = len(group.logs[0])
    lower, upper = clopper_pearson(certified * images, images)
    return GroupSummary(
        group=group,
        acr=acr,
        acr_mean=float(np.mean(acr)),
        acr_std=float(np.std(acr, ddof=1)) if len(acr) > 1 else None,
        certified=_percent(certified),
        lower=_percent(lower),
        upper=_percent(upper),
        abstained=_abstained(group),
        at_cap=_at_cap(group),
        p_quantiles=_p_quantiles(group),
        paper=paper_row(group, paper),
        comparison=comparison,
    )


def _abstained(group: Group) -> float | None:
    if not group.knows_abstentions:
        return None
    return 100.0 * float(np.mean([np.mean(log.predict == -1) for log in group.logs]))


def _percent(shares: np.ndarray) -> tuple[float, ...]:
    return tuple(100.0 * float(share) for share in shares)


def _at_cap(group: Group) -> float | None:
    cap = group.cap
    if not cap:
        return None
    printed = cap * (1 - 1e-7) - 1e-12  # radii are of float32(sigma), and logged rounded down
    return 100.0 * float(np.mean([certified_accuracy(log, [printed])[0] for log in group.logs]))


def _p_quantiles(group: Group) -> tuple[float | None, ...]:
    values = [None if log.predictions else certified_p(log, group.sigma) for log in group.logs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return (None,) * len(QUANTILES)
    found = np.quantile(np.concatenate(known), QUANTILES, method="lower")
    return tuple(float(p) if p > 0 else None for p in found)
