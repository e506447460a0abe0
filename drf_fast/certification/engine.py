"""The certification of a list of images in groups, divided among shards and processes.

The images are cut into groups of consecutive ones, as many as the selection step packs into one
forward pass. Selection always runs on a whole group, even if only some of its images are left to
do, and estimation on one image at a time (for a small n: on the whole group again). So the
computation for an image never depends on how the work was divided or interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from drf_fast.backends.environment import environment
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.certification.log import Row
from drf_fast.certification.stopping import Fixed, Rule
from drf_fast.runtime.progress import Tracker


class Images(Protocol):
    """Images by position, as ``drf_fast.data.Dataset`` has them."""

    @property
    def labels(self) -> Any:
        """``labels[index]`` is the class of an image."""

    @property
    def num_classes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    def float_images(self, index: list[int]) -> torch.Tensor:
        """(B, C, H, W) in pixel units."""
        ...


class Sink(Protocol):
    """Where certificates go: a log, or a list of them."""

    done: set[int]

    def append(self, row: Row) -> None: ...


def computation(
    classifier: SmoothedClassifier, device: torch.device, batch_size: int
) -> dict[str, Any]:
    """What a log records of how its numbers were computed, after the form was chosen."""
    choices = classifier.choices
    return {
        "precision": choices["precision"],
        "batch_size": batch_size,
        "memory_format": choices["memory_format"],
        "compile": choices["compile"],
        "device": device.type,
        "environment": environment(device, classifier.left_out),
    }


@dataclass(frozen=True)
class Work:
    """The images to be certified, and the settings.

    Attributes:
        classifier: the smoothed network.
        images: the data set.
        indices: positions of all images of the run in the data set, in order.
        device: where to compute.
        n0: samples that choose the class.
        rule: how many samples bound its probability, and when to stop.
        batch_size: rows of a forward pass.
        skip_wrong: spend no samples on an image whose chosen class is not its label.
        shard: (i, k): do part i of 1..k.
    """

    classifier: SmoothedClassifier
    images: Images
    indices: tuple[int, ...]
    device: torch.device
    n0: int
    rule: Rule
    batch_size: int
    skip_wrong: bool = False
    shard: tuple[int, int] = (1, 1)

    def groups(self) -> list[tuple[int, ...]]:
        """The groups of this shard."""
        size = max(1, self.batch_size // self.n0)
        groups = [self.indices[i : i + size] for i in range(0, len(self.indices), size)]
        part, parts = self.shard
        return groups[part - 1 :: parts]

    def settings(self) -> dict[str, Any]:
        """What a log records of how its certificates are made.

        On resume all of it but the environment must agree.
        """
        classifier, rule = self.classifier, self.rule
        optional = {
            "radius": getattr(rule, "radius", None),
            "tolerance": getattr(rule, "tolerance", None),
            "skip_wrong": self.skip_wrong or None,
        }
        return {
            "n0": self.n0,
            "n": rule.n,
            "alpha": rule.alpha,
            "budget": rule.budget,
            **{key: value for key, value in optional.items() if value is not None},
            "seed": classifier.seed,
            **computation(classifier, self.device, self.batch_size),
        }

    @property
    def packs_groups(self) -> bool:
        """Whether estimation, too, packs the images of a group: if all need the same, small n."""
        same_n = type(self.rule) is Fixed and not self.skip_wrong
        return same_n and 2 * self.rule.n <= self.batch_size


def run(work: Work, log: Sink, rank: int = 0, processes: int = 1, *, quiet: bool = False) -> None:
    """Certify this process's share of the images that are not in ``log`` yet."""
    groups = work.groups()[rank::processes]
    unfinished = [group for group in groups if not log.done.issuperset(group)]
    todo = sum(index not in log.done for group in unfinished for index in group)
    radii: list[float] = []  # radius of each image of this run, -1 where it is wrong
    with Tracker("certify", todo, quiet=quiet or rank > 0) as tracker:
        for group in unfinished:
            for row, drawn in _rows(work, group, log.done):
                log.append(row)
                radii.append(row.radius if row.predict == row.label else -1.0)
                rate = f"{drawn / max(row.seconds, 1e-9):,.0f} samples/s"
                tracker.advance(note=lambda rate=rate: f"{running(radii)}, {rate}")


def running(radii: Sequence[float]) -> str:
    """The ACR and the certified accuracy of the images so far; radii, -1 where one is wrong."""
    acr = sum(max(radius, 0.0) for radius in radii) / len(radii)
    shares = (100 * sum(radius >= r for radius in radii) / len(radii) for r in (0.0, 0.5, 1.0))
    return f"ACR {acr:.3f}, certified {'/'.join(f'{share:.0f}' for share in shares)} % at 0/0.5/1"


def _rows(work: Work, group: tuple[int, ...], done: set[int]) -> Iterator[tuple[Row, int]]:
    """The log rows of those images of a group that are not done, and the samples each took."""
    start = time.perf_counter()
    x = work.images.float_images(list(group)).to(work.device)
    ids = torch.tensor(group, device=work.device)
    choice = work.classifier.select(x, work.n0, work.batch_size, image_ids=ids)
    chosen = choice.tolist()
    share = (time.perf_counter() - start) / len(group)
    if work.packs_groups:
        start = time.perf_counter()
        counts, trials = _estimate(work, x, choice, ids)
        share += (time.perf_counter() - start) / len(group)
        for index, label, count in zip(group, chosen, counts, strict=True):
            if index not in done:
                yield _row(work, index, label, count, trials, share), work.n0 + trials
        return
    for i, (index, label) in enumerate(zip(group, chosen, strict=True)):
        if index in done:
            continue
        start = time.perf_counter()
        counts, trials = [0], 0
        if not (work.skip_wrong and label != int(work.images.labels[index])):
            one = slice(i, i + 1)
            counts, trials = _estimate(work, x[one], choice[one], ids[one])
        seconds = share + time.perf_counter() - start
        yield _row(work, index, label, counts[0], trials, seconds), work.n0 + trials


def _estimate(work: Work, x, choice, ids) -> tuple[list[int], int]:
    stops = None if type(work.rule) is Fixed else work.rule.stops
    counts, trials = work.classifier.estimate(
        x, choice, work.rule.n, work.batch_size, image_ids=ids, stops=stops
    )
    return counts.tolist(), trials


def _row(work: Work, index: int, choice: int, count: int, trials: int, seconds: float) -> Row:
    proof = work.rule.final(count, trials)
    # A wrong class that was skipped (trials 0) is logged with radius 0: nothing is claimed.
    certified = proof.p_lower > 0.5 or trials == 0
    return Row(
        idx=index,
        label=int(work.images.labels[index]),
        predict=choice if certified else SmoothedClassifier.ABSTAIN,
        radius=proof.radius,
        seconds=seconds,
        count=count,
        n=trials,
        p_lower=proof.p_lower,
    )
