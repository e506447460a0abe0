"""Single images for display: noisy and adversarial versions, votes and certificates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drf_fast.attacks import engine
from drf_fast.attacks.engine import Work
from drf_fast.attacks.log import AttackRow
from drf_fast.certification.log import Log
from drf_fast.errors import InputError
from drf_fast.functional import noisy_repeat
from drf_fast.runtime import machine


@dataclass(frozen=True, eq=False)
class Card:
    """One image; pictures are (C, H, W) float32 in pixel units, classes -1 where it abstains.

    Attributes:
        idx, label: position in its data set, true class.
        predict, radius: the certificate.
        clean, noisy, adversarial: the image, one noisy copy (not clamped), the worst image found.
        epsilon, distance: the bound of the attack, and the distance of the adversarial image.
        attacked: class of the adversarial image by PREDICT.
        votes, attacked_votes: (K,) shares of the noisy copies of the clean and adversarial image.
        names: of the classes.
    """

    idx: int
    label: int
    predict: int
    radius: float
    clean: np.ndarray
    noisy: np.ndarray
    adversarial: np.ndarray
    epsilon: float
    distance: float
    attacked: int
    votes: np.ndarray
    attacked_votes: np.ndarray
    names: tuple[str, ...]

    def class_name(self, at: int) -> str:
        """Name of a class, or "abstains"; the number if a damaged log names no existing class."""
        return "abstains" if at == -1 else self.names[at] if at < len(self.names) else str(at)

    @property
    def broken(self) -> bool:
        """Whether the attack changed its class; an abstention counts as the label."""
        return self.attacked not in (-1, self.label if self.predict == -1 else self.predict)


def choose(
    certificates: Log, sort: str, count: int, epsilon: float, attacked: Sequence[AttackRow] = ()
) -> list[tuple[int, float]]:
    """The images to show, and the epsilon at which to attack each.

    Args:
        certificates: of the images to choose from.
        sort: "radius": evenly from the smallest to the largest radius, wrong ones first; "idx": the
            first; "abstain": abstentions first, then the smallest radii; "broken": those whose
            class ``attacked`` changed, at the smallest epsilon that did. An attack may have been on
            other images, too.
        count: number of images, at most.
        epsilon: for all but "broken".
        attacked: rows of an attack log.

    Raises:
        InputError: "broken" without an attack that changed a class.
    """
    if sort == "broken":
        changed: dict[int, float] = {}
        certified = set(certificates.idx.tolist())
        for row in sorted(attacked, key=lambda row: row.epsilon):
            was_right = row.idx in certified and row.clean == row.label
            if was_right and row.changed:
                changed.setdefault(row.idx, row.epsilon)
        if not changed and attacked:
            raise InputError(
                "--sort broken shows images whose class an attack changed: expected one, got none "
                "in the attacks beside the checkpoint; attack with larger --epsilons, or choose "
                "another --sort"
            )
        if not changed:
            raise InputError(
                "--sort broken shows images whose class an attack changed: expected an attack log "
                "with one beside the checkpoint, got none; run 'drf-fast attack' first"
            )
        return list(changed.items())[:count]
    idx, radius = certificates.idx, np.where(certificates.correct, certificates.radius, -1.0)
    order = np.argsort(idx) if sort == "idx" else np.lexsort((idx, radius))
    if sort == "abstain":
        order = np.lexsort((idx, radius, certificates.predict != -1))
    elif sort == "radius" and count < len(order):
        order = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    return [(int(idx[at]), epsilon) for at in order[:count]]


def cards(work: Work, certificates: Log, chosen: Sequence[tuple[int, float]]) -> list[Card]:
    """The chosen images as cards, in their order."""
    certified = {
        int(i): (int(label), float(radius))
        for i, label, radius in zip(
            certificates.idx, certificates.predict, certificates.radius, strict=True
        )
    }
    found: dict[tuple[int, float], Card] = {}
    for epsilon in dict.fromkeys(epsilon for _, epsilon in chosen):
        indices = tuple(index for index, own in chosen if own == epsilon)
        part = dataclasses.replace(work, epsilons=(epsilon,), indices=indices)
        for group in part.groups():
            for card in _cards(part, certified, group):
                found[card.idx, epsilon] = card
    return [found[pair] for pair in chosen]


def _cards(
    work: Work, certified: dict[int, tuple[int, float]], group: tuple[int, ...]
) -> list[Card]:
    judge, ids = work.classifier, torch.tensor(group, device=work.device)
    x = work.images.float_images(list(group)).to(work.device)
    rows, shape = len(group) * work.search.num_samples, work.images.image_shape
    with machine.memory_for(rows, shape, "--num-samples or --images"):
        (adversarial,) = engine.adversarial(work, group)
    noisy = noisy_repeat(x, judge.sigma, 1, seed=judge.seed, image_ids=ids, stream="selection")
    votes, attacked = (
        judge.votes(images, work.n, work.batch_size, image_ids=ids).numpy() / work.n
        for images in (x, adversarial.x)
    )
    return [
        Card(
            idx=index,
            label=int(work.images.labels[index]),
            predict=certified[index][0],
            radius=certified[index][1],
            clean=x[at].cpu().numpy(),
            noisy=noisy[at].cpu().numpy(),
            adversarial=adversarial.x[at].cpu().numpy(),
            epsilon=adversarial.epsilon,
            distance=float(adversarial.distance[at]),
            attacked=int(adversarial.predict[at]),
            votes=votes[at],
            attacked_votes=attacked[at],
            names=tuple(work.images.class_names),
        )
        for at, index in enumerate(group)
    ]
