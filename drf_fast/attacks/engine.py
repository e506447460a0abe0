"""The attack on a list of images, in groups divided among shards; one line per image and epsilon.

Images are attacked in groups of consecutive ones, always a whole group even if only some of its
images are left to do, so that results never depend on how the work was interrupted. Shards consist
of blocks of images that no setting of speed moves, and groups lie within a block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from drf_fast.attacks.log import AttackLog, AttackRow
from drf_fast.attacks.search import Search, worst
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.data.dataset import Dataset
from drf_fast.runtime import machine
from drf_fast.runtime.progress import Tracker
from drf_fast.runtime.tensors import per_image

_RANKING = 256  # noisy copies by which the candidates of an image are ranked
_MOST_ROWS = 1024  # rows of a forward and backward pass, at most
_MOST_VALUES = 2**24  # pixel values of these rows, at most: 111 rows of 3 x 224 x 224


@dataclass(frozen=True)
class Work:
    """The images to be attacked, and the settings.

    Attributes:
        classifier: the smoothed network that evaluates the attack; its seed is the attack's key, so
            that its noise differs from any certificate's.
        model: the network through which gradients are computed.
        images: the data set.
        indices: positions of all images of the run in the data set, in order.
        device: where to compute.
        search: the settings of the search.
        epsilons: ascending, L2 in pixel units.
        n, alpha: of PREDICT.
        batch_size: rows of a forward pass of ``classifier``, and at most of a pass with gradients.
        shard: (i, k): do part i of 1..k.
    """

    classifier: SmoothedClassifier
    model: Any
    images: Dataset
    indices: tuple[int, ...]
    device: torch.device
    search: Search
    epsilons: tuple[float, ...]
    n: int
    alpha: float
    batch_size: int
    shard: tuple[int, int] = (1, 1)

    def groups(self) -> list[tuple[int, ...]]:
        """The groups of this shard, of one image at least."""
        part, parts = self.shard
        most = min(self.batch_size, _MOST_VALUES // math.prod(self.images.image_shape))
        blocks = _parts(self.indices, _MOST_ROWS // self.search.num_samples)[part - 1 :: parts]
        return [
            group for block in blocks for group in _parts(block, most // self.search.num_samples)
        ]

    def remedy(self, group: tuple[int, ...]) -> str:
        """What to lower if the memory does not suffice for this group."""
        rows = len(group) * self.search.num_samples
        return "--num-samples" if len(group) == 1 else f"--batch-size below {rows:,}"


@dataclass(frozen=True)
class Found:
    """The adversarial images of a group at one epsilon.

    Attributes:
        epsilon: the bound, L2 in pixel units.
        x: (B, ...) images.
        clean, predict: (B,) classes by PREDICT of the clean and of these images.
        distance: (B,) float64, ||x - clean||_2.
        attacks: B names of searches.
    """

    epsilon: float
    x: torch.Tensor
    clean: torch.Tensor
    predict: torch.Tensor
    distance: torch.Tensor
    attacks: tuple[str, ...]


def _parts(indices: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    """Consecutive parts of ``size`` indices, or of one if ``size`` is 0."""
    size = max(1, size)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def run(work: Work, log: AttackLog) -> None:
    """Attack the images of this shard that are not in ``log`` yet."""
    unfinished = [group for group in work.groups() if not log.done.issuperset(group)]
    with Tracker("attack", sum(map(len, unfinished)) * len(work.epsilons)) as tracker:
        began, right = time.perf_counter(), {epsilon: [0, 0] for epsilon in work.epsilons}
        for group in unfinished:
            start, found = time.perf_counter(), []
            labels = work.images.labels[list(group)]
            rows = len(group) * work.search.num_samples
            with machine.memory_for(rows, work.images.image_shape, work.remedy(group)):
                for one in adversarial(work, group):
                    found.append(one)
                    hits = (one.clean == labels) & (one.predict == labels)
                    right[one.epsilon][0] += int(hits.sum())
                    right[one.epsilon][1] += len(group)
                    tracker.advance(len(group), _note(right, time.perf_counter() - began))
            seconds = (time.perf_counter() - start) / len(group) / len(work.epsilons)
            for i, index in enumerate(group):
                if index not in log.done:
                    log.add([_row(work, one, i, index, seconds) for one in found])


def _note(right: dict[float, list[int]], seconds: float) -> str:
    """The accuracy under attack of the images so far, and the seconds per image and epsilon."""
    done = {epsilon: count for epsilon, count in right.items() if count[1]}
    shares = "/".join(f"{100 * hits / images:.0f}" for hits, images in done.values())
    each = seconds / sum(images for _, images in done.values())
    return f"{shares} % right at {'/'.join(f'{epsilon:g}' for epsilon in done)}, {each:.2g} s each"


def adversarial(work: Work, group: tuple[int, ...]) -> Iterator[Found]:
    """The adversarial images of a group, at each epsilon in ascending order.

    An image is moved away from the class that PREDICT assigns to it, or from its label where that
    abstains. If a smaller epsilon has changed the class already, its image is kept for larger ones.
    """
    judge, sigma = work.classifier, work.classifier.sigma
    x = work.images.float_images(list(group)).to(work.device)
    ids = torch.tensor(group, device=work.device)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return judge.predict_batch(images, work.n, work.alpha, work.batch_size, image_ids=ids)

    clean = predict(x)
    labels = work.images.labels[list(group)]
    target = torch.where(clean == judge.ABSTAIN, labels, clean).to(work.device)

    def votes(images: torch.Tensor) -> torch.Tensor:
        return judge.estimate(images, target, _RANKING, work.batch_size, image_ids=ids)[0]

    direction = work.search.directions(work.model, x, target, sigma, ids)
    best, names, predicted = x, ["none"] * len(group), clean
    for epsilon in work.epsilons:
        broken = (predicted != target.cpu()) & (predicted != judge.ABSTAIN)
        tried = work.search.candidates(work.model, x, target, sigma, ids, epsilon, direction)
        new_names, new = worst([*tried, ("before", best)], votes)
        keep = per_image(broken.to(work.device), x)
        names = [
            old if kept or name == "before" else name
            for old, name, kept in zip(names, new_names, broken.tolist(), strict=True)
        ]
        best = torch.where(keep, best, new)
        predicted = predict(best)
        distance = (best.double() - x.double()).flatten(1).norm(dim=1).cpu()
        yield Found(epsilon, best, clean, predicted, distance, tuple(names))


def _row(work: Work, found: Found, i: int, index: int, seconds: float) -> AttackRow:
    return AttackRow(
        idx=index,
        label=int(work.images.labels[index]),
        epsilon=found.epsilon,
        clean=int(found.clean[i]),
        predict=int(found.predict[i]),
        # Increased by more than the rounding of the sum of squares, to be never too small.
        distance=math.nextafter(float(found.distance[i]) * (1 + 1e-15), math.inf),
        attack=found.attacks[i],
        seconds=seconds,
    )
