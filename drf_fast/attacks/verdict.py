"""Comparison of certificates with attacks: broken certificates, and shares of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drf_fast.attacks.log import AttackRow
from drf_fast.certification.log import Log
from drf_fast.runtime.text import rounded_down


@dataclass(frozen=True)
class Broken:
    """A certificate that an adversarial image contradicts.

    Attributes:
        idx: the image.
        certified: the class that was certified.
        radius: the certified radius, L2 in pixel units.
        predict: PREDICT's class of the adversarial image.
        distance: of the adversarial image from the image, L2 in pixel units.
    """

    idx: int
    certified: int
    radius: float
    predict: int
    distance: float

    def __str__(self) -> str:
        radius = rounded_down(self.radius, 6)
        return (
            f"image {self.idx} is certified class {self.certified} within {radius}, and "
            f"at distance {self.distance:.6f} it is class {self.predict}"
        )


@dataclass(frozen=True)
class Standing:
    """Results of certificates and attacks on the same images at one epsilon, shares in %.

    Attributes:
        epsilon: L2 in pixel units.
        images: number of images.
        certified: certified with the label within epsilon; None without certificates.
        correct: classified as the label before and after the attack.
        undecided: no wrong class, but an abstention.
        distance: mean distance of the adversarial images.
    """

    epsilon: float
    images: int
    certified: float | None
    correct: float
    undecided: float
    distance: float


def broken(rows: Sequence[AttackRow], log: Log) -> list[Broken]:
    """The certificates of ``log`` that an adversarial image within their radius contradicts.

    The nearest such image of each; an abstention contradicts nothing, and neither does an image on
    the far side of the radius, whatever epsilon was allowed.
    """
    certificates = {
        int(idx): (int(label), float(radius))
        for idx, label, radius in zip(log.idx, log.predict, log.radius, strict=True)
    }
    nearest: dict[int, Broken] = {}
    for row in rows:
        label, radius = certificates.get(row.idx, (-1, 0.0))
        if label == -1 or row.predict in (-1, label) or row.distance > radius:
            continue
        if row.idx not in nearest or row.distance < nearest[row.idx].distance:
            nearest[row.idx] = Broken(row.idx, label, radius, row.predict, row.distance)
    return list(nearest.values())


def standings(rows: Sequence[AttackRow], log: Log | None) -> list[Standing]:
    """Shares of images under attack and certified, at each epsilon in ascending order."""
    radius: Mapping[int, float] = {}
    if log is not None:
        certified = zip(log.idx, log.radius, log.correct, strict=True)
        radius = {int(i): float(r) if right else -1.0 for i, r, right in certified}
    found = []
    for epsilon in sorted({row.epsilon for row in rows}):
        here = [row for row in rows if row.epsilon == epsilon]
        known = all(row.idx in radius for row in here)

        def share(flags: list[bool]) -> float:
            return 100 * sum(flags) / len(flags)

        found.append(
            Standing(
                epsilon,
                len(here),
                share([radius[row.idx] >= epsilon for row in here]) if known else None,
                share([row.correct for row in here]),
                share([row.undecided for row in here]),
                sum(row.distance for row in here) / len(here),
            )
        )
    return found
