"""Attacks beside certificates: each method's accuracy under attack, and broken certificates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drf_fast.attacks.log import Attacked, AttackRow, differences
from drf_fast.attacks.verdict import broken
from drf_fast.certification.log import Log
from drf_fast.report.groups import Group, restricted_to
from drf_fast.report.intervals import clopper_pearson
from drf_fast.report.summary import Summary
from drf_fast.runtime.text import number_of

UNDER_ATTACK = (
    "Under attack: accuracy in % within each L2 epsilon (pixel units), an abstention of PREDICT "
    "counted as wrong; undecided: no wrong class but an abstention; certified: of the same images."
)


@dataclass(frozen=True, eq=False)
class AttackCurve:
    """Accuracy of one group under attack; (E,) float64 arrays, shares in %.

    Attributes:
        group: of the attacked networks, its logs restricted to the attacked images.
        images: number of images, the smallest if networks or epsilons differ in it.
        epsilon: 0 and the strengths, ascending, L2 in pixel units.
        correct: share that keeps the label, mean over networks.
        undecided: share with an abstention and no wrong class.
        certified: share of the same images that is certified at epsilon.
        lower, upper: of one network the 95 % interval over images of the share that keeps the
            label, the upper end including undecided ones; of several the lowest and highest.
    """

    group: Group
    images: int
    epsilon: np.ndarray
    correct: np.ndarray
    undecided: np.ndarray
    certified: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def belongs_to(self, group: Group) -> bool:
        """Whether it is of this group of the report."""
        return (self.group.name, self.group.sigma) == (group.name, group.sigma)


def curves_of(
    summary: Summary, logs: Sequence[Attacked]
) -> tuple[tuple[AttackCurve, ...], list[str]]:
    """The curves of the attacked groups, and warnings.

    A log belongs to the group of its network, images and sigma. Several logs of one network count
    as one attack: an image keeps its label if it does in all of them. Images without a certificate
    are left out, since nothing is known of how far they are certified.
    """
    if summary.predictions:
        said = "attacks are compared with certificates, not with predictions: left out"
        return (), [said] if logs else []
    curves, warnings, used = [], [], set()
    for entry in summary.groups:
        networks = []
        for log in entry.group.logs:
            own = on_network_of(log, entry.group.sigma, logs)
            if not own:
                continue
            used |= {one.path for one in own}
            certified = set(log.idx.tolist())
            rows = [row for one in own for row in one.rows if row.idx in certified]
            unknown = {idx for one in own for idx in one.images} - certified
            if unknown:
                attacked = number_of(len(unknown), "attacked image")
                lack = (
                    "not common to all logs, in" if summary.of_logs else "without a certificate in"
                )
                warnings.append(f"{attacked} {lack} {log.path}: left out")
            if not rows:
                continue
            networks.append((rows, log))
            warnings += [f"BROKEN CERTIFICATE in {log.path}: {one}" for one in broken(rows, log)]
        if networks:
            curves.append(_curve(entry.group, networks))
            shown = set(curves[-1].epsilon.tolist())
            asked = {row.epsilon for rows, _ in networks for row in rows}
            if lacking := sorted(asked - shown):
                strengths = ", ".join(f"{epsilon:g}" for epsilon in lacking)
                warnings.append(
                    f"{entry.group.name}: not all of its networks were attacked within "
                    f"{strengths}: left out"
                )
    warnings += [
        f"{one.path} attacks a network, images or a sigma that no log here certifies: left out"
        for one in logs
        if one.path not in used
    ]
    return tuple(curves), warnings


def on_network_of(log: Log, sigma: float | None, logs: Sequence[Attacked]) -> list[Attacked]:
    """The attack logs of the network and the images of ``log``, at this sigma."""
    config = {**(log.config or {}), "sigma": sigma}
    if config.get("checkpoint_sha256") is None:
        return []
    return [one for one in logs if not differences(one.config, config)]


def _curve(group: Group, networks: list[tuple[list[AttackRow], Log]]) -> AttackCurve:
    points = [_points(rows, log) for rows, log in networks]
    epsilons = sorted(set.intersection(*(set(found) for found in points)))
    # (networks, epsilons, 4): images, keeping the label, undecided, certified
    counts = np.array([[found[epsilon] for epsilon in epsilons] for found in points])
    shares = 100.0 * counts[:, :, 1:] / counts[:, :, :1]
    correct, undecided, certified = shares.mean(axis=0).T
    if len(networks) > 1:
        lower, upper = shares[:, :, 0].min(axis=0), shares[:, :, 0].max(axis=0)
    else:
        bounds = [
            (clopper_pearson(kept, total)[0], clopper_pearson(kept + undecided_, total)[1])
            for total, kept, undecided_, _ in counts[0].tolist()
        ]
        lower, upper = 100.0 * np.array(bounds).T
    images = int(counts[:, :, 0].min())
    epsilon = np.array(epsilons)
    attacked = tuple(restricted_to(log, [row.idx for row in rows]) for rows, log in networks)
    group = dataclasses.replace(group, logs=attacked)
    return AttackCurve(group, images, epsilon, correct, undecided, certified, lower, upper)


def _points(rows: Sequence[AttackRow], log: Log) -> dict[float, tuple[int, int, int, int]]:
    """By epsilon: the numbers of images, of those that keep the label, undecided, certified.

    An image with another class within one epsilon has it within each larger one of other logs, too.
    """
    certified = dict(zip(log.idx.tolist(), np.where(log.correct, log.radius, -1.0), strict=True))
    lost: dict[int, float] = {}
    for row in rows:
        if not (row.correct or row.undecided):
            lost[row.idx] = min(row.epsilon, lost.get(row.idx, math.inf))
    found: dict[float, dict[int, tuple[bool, bool]]] = {0.0: {}}
    for row in rows:
        clean = (row.clean == row.label, row.clean == -1)
        holds = row.epsilon < lost.get(row.idx, math.inf)
        attacked = (holds and row.correct, holds and row.undecided)
        for epsilon, (keeps, open_) in ((0.0, clean), (row.epsilon, attacked)):
            before = found.setdefault(epsilon, {}).get(row.idx, (True, False))
            stands, either = before[0] and keeps, (before[0] or before[1]) and (keeps or open_)
            found[epsilon][row.idx] = (stands, either and not stands)
    return {
        epsilon: (
            len(images),
            sum(keeps for keeps, _ in images.values()),
            sum(open_ for _, open_ in images.values()),
            sum(certified[idx] >= epsilon for idx in images),
        )
        for epsilon, images in found.items()
    }


def attack_cells(curves: Sequence[AttackCurve]) -> tuple[list[str], list[list[str]]]:
    """A table of accuracy under attack and certified accuracy of the same images, by epsilon."""
    epsilons = sorted({float(e) for curve in curves for e in curve.epsilon})
    header = ["under attack", "sigma", "images", *(f"{e:g}" for e in epsilons)]
    body = []
    for curve in curves:
        at = {float(e): i for i, e in enumerate(curve.epsilon)}
        for name, values in (
            (curve.group.name, curve.correct),
            ("  undecided", curve.undecided),
            ("  certified", curve.certified),
        ):
            first = [name, "", ""]
            if name == curve.group.name:
                first[1:] = [curve.group.sigma_text, str(curve.images)]
            body.append([*first, *(f"{values[at[e]]:.1f}" if e in at else "" for e in epsilons)])
    return header, body


def as_dicts(curves: Sequence[AttackCurve]) -> list[dict[str, object]]:
    """The curves as JSON-ready values."""
    names = ("epsilon", "correct", "undecided", "certified", "lower", "upper")
    return [
        {
            "method": curve.group.name,
            "sigma": curve.group.sigma,
            "images": curve.images,
            **{name: getattr(curve, name).tolist() for name in names},
        }
        for curve in curves
    ]
