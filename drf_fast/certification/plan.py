"""Before a certification: its predicted cost, the largest possible radius, and warnings."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

import torch

from drf_fast.certification.engine import Work
from drf_fast.certification.stopping import Rule, certificate
from drf_fast.runtime.progress import say
from drf_fast.runtime.text import duration, images_of, number_of, rounded_down

_MOST_ALPHA = 0.1  # above it, it is more likely a confidence
_PROBES = 256  # images on which the accuracy under noise is estimated


@dataclass(frozen=True)
class Plan:
    """The cost of what is left of a certification, and the largest radius that it can certify.

    Attributes:
        images: images of this run (of this shard).
        done: those of them that the log contains.
        samples: noisy samples at most, selection included.
        forward_passes: at most.
        rows_per_second: measured rate of the network at this batch size.
        seconds: predicted time at most, by one process.
        largest_radius: the radius that n of n votes would certify.
        accuracy_under_noise: share of noisy images that are classified right, of a sample; None
            if there are too few images.
        warnings: one sentence each.
    """

    images: int
    done: int
    samples: int
    forward_passes: int
    rows_per_second: float
    seconds: float
    largest_radius: float
    accuracy_under_noise: float | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def make(work: Work, done: Set[int] = frozenset()) -> Plan:
    """Measure the network's rate and its accuracy under noise on some images.

    Args:
        work: the images and the settings.
        done: images that are certified already; where all are, there is nothing to measure.
    """
    classifier, rule = work.classifier, work.rule
    images = sum(map(len, work.groups()))
    groups = [group for group in work.groups() if not done >= set(group)]
    selected = sum(map(len, groups))  # the images of a group are selected together
    left = sum(index not in done for group in groups for index in group)
    passes = len(groups) * -(-work.n0 // work.batch_size)  # of selection
    if work.packs_groups:
        samples = selected * (work.n0 + rule.n)
        images_per_pass = work.batch_size // rule.n
        passes += sum(-(-len(group) // images_per_pass) for group in groups)
    else:
        samples = selected * work.n0 + left * rule.n
        passes += left * -(-rule.n // work.batch_size)
    largest = rule.final(rule.n, rule.n).radius
    if images and left == 0:
        return Plan(images, images, 0, 0, 0.0, 0.0, largest, None, ())
    sample = work.images.float_images(list(work.indices[:1])).to(work.device)
    rate = classifier.rate(sample, work.batch_size)
    accuracy = _accuracy_under_noise(work)
    return Plan(
        images,
        images - left,
        samples,
        passes,
        rate,
        samples / rate,
        largest,
        accuracy,
        tuple(_warnings(work, largest, accuracy)),
    )


def show(plan: Plan, work: Work) -> None:
    """Print the plan on stderr."""
    rule = work.rule
    if plan.done:
        say(f"resuming: {plan.done:,} of {number_of(plan.images, 'image')} done")
    if plan.done and plan.done == plan.images:
        return
    at_most = "" if rule.budget == "fixed" and not work.skip_wrong else "at most "
    say(
        f"certifying {images_of(work.images.name, plan.images - plan.done)} ({work.images.split}) "
        f"at sigma {rule.sigma:g}, n {rule.n:,}, alpha {rule.alpha:g}; "
        f"the largest radius these allow is {rounded_down(plan.largest_radius, 3)}"
    )
    say(
        f"{at_most}{plan.samples:,} samples in {plan.forward_passes:,} forward passes of "
        f"{work.batch_size} rows, {plan.rows_per_second:,.0f} rows/s: {at_most}about "
        f"{duration(plan.seconds)}"
    )
    for warning in plan.warnings:
        say(f"warning: {warning}")


def _accuracy_under_noise(work: Work) -> float | None:
    step = max(1, len(work.indices) // _PROBES)
    chosen = list(work.indices[::step][:_PROBES])
    right = 0
    for at in range(0, len(chosen), work.batch_size):
        part = chosen[at : at + work.batch_size]
        x = work.images.float_images(part).to(work.device)
        ids = torch.tensor(part, device=work.device)
        votes = work.classifier.select(x, 1, work.batch_size, image_ids=ids).tolist()
        right += sum(
            vote == int(work.images.labels[index]) for vote, index in zip(votes, part, strict=True)
        )
    return right / len(chosen) if len(chosen) >= 20 else None


def warning_of_alpha(alpha: float) -> str | None:
    """A sentence where alpha looks like a confidence."""
    if alpha <= _MOST_ALPHA:
        return None
    return (
        f"alpha {alpha:g} is the probability of an error, not the confidence: was "
        f"{1 - alpha:.4g} meant?"
    )


def _warnings(work: Work, largest: float, accuracy: float | None) -> list[str]:
    rule = work.rule
    of_alpha = warning_of_alpha(rule.alpha)
    found = [] if of_alpha is None else [of_alpha]
    if largest == 0:
        needed = next(n for n in (10**e for e in range(1, 16)) if _reaches(n, rule))
        found.append(
            f"with n {rule.n} and alpha {rule.alpha:g} every image must abstain; {needed:,} "
            "samples can certify something"
        )
    low, high = (
        float(v) for v in torch.aminmax(work.images.float_images(list(work.indices[:_PROBES])))
    )
    if low < 0 or high > 1:
        found.append(
            f"pixels lie between {low:.3g} and {high:.3g}, not in [0, 1]: sigma and radii are in "
            "pixel units, and normalisation belongs inside the network"
        )
    if accuracy is not None:
        chance = 1 / work.images.num_classes
        count = min(_PROBES, len(work.indices))
        if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / count):
            found.append(
                f"accuracy under noise is {100 * accuracy:.1f} %, and chance is {100 * chance:.1f} "
                "%: is it the right checkpoint, data set and normalisation, and was the network "
                "trained with noise of this sigma?"
            )
    return found


def _reaches(n: int, rule: Rule) -> bool:
    """Whether n of n samples prove a radius."""
    terms = {"sigma": rule.sigma, "alpha": rule.alpha, "distance": rule.distance}
    return certificate(n, n, n, budget=rule.budget, **terms).radius > 0
