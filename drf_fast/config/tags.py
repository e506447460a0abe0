"""Tags of settings: annotations of the fields in ``options``, and sets of fields by tag.

Every field has exactly one ``Role``; the other tags are optional. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from enum import Enum


class Role(Enum):
    """What a setting is for."""

    RESULT = "shapes the result: the trained network, the certificates, the numbers"
    SPEED = "how it is computed: costs time or memory, the result is the same up to rounding"
    SOURCE = "where settings or results of others are read"
    PLACE = "where files lie"
    CALL = "of this one call: what to do with what is there, how to show it"
    LIMIT = "how far a run goes and how often it saves"
    CERTIFICATES = "of the certificates after training"


class Tag(Enum):
    """What else is to be known of a setting."""

    MEASURED = "'auto' measures it; a resumed run takes what was recorded"
    RESUMES = "although it has a role that a resumed run keeps, it may differ then"
    RENEWED = "although it has a role that a resumed run inherits, it is not inherited"
    ONE_PER_SWEEP = "cannot be varied: the runs of a sweep have it in common, or set it"
    SAME_COST = "although it shapes the result, a training step takes as long with any value"
    ADVERSARY = "without effect where no adversary is used"
    SOFT_BALL = "without effect where DRF's soft ball is not used"


class Section(Enum):
    """Where the help lists a setting whose other tags do not say it; a title and a sentence."""

    DATA = ("data", "The images, and the network that sees them.")
    OPTIMISER = ("optimiser", "Stochastic gradient descent.")
    COMPUTATION = ("computation", "Device, arithmetic, memory.")


class Range(Enum):
    """The values that a number may have; others, such as None or 'auto', pass."""

    COUNT = "1 to 2^32 - 1"
    FROM_ZERO = "0 to 1e30, whole numbers to 2^32 - 1"
    ABOVE_ZERO = "1e-30 to 1e30"


@dataclasses.dataclass(frozen=True)
class Of:
    """The training method that a setting belongs to."""

    method: str


@functools.cache
def of(config_type: type) -> dict[str, frozenset[Role | Tag | Section | Range | Of]]:
    """The tags of each field of a configuration, in the order of declaration.

    Raises:
        TypeError: a field without a role, or with several, or with two ranges.
    """
    hints = typing.get_type_hints(config_type, include_extras=True)
    found = {}
    for field in dataclasses.fields(config_type):
        metadata = getattr(hints[field.name], "__metadata__", ())
        tags = frozenset(
            tag for tag in metadata if isinstance(tag, (Role, Tag, Section, Range, Of))
        )
        where = f"{config_type.__name__}.{field.name}"
        roles = sum(isinstance(tag, Role) for tag in tags)
        if roles != 1:
            raise TypeError(f"{where} must have one Role in its Annotated type, got {roles}")
        if sum(isinstance(tag, Range) for tag in tags) > 1:
            raise TypeError(f"{where} must have one Range at most in its Annotated type")
        found[field.name] = tags
    return found


def having(config_type: type, *tags: Role | Tag | Section | Range | Of) -> tuple[str, ...]:
    """The fields with at least one of ``tags``, in the order of declaration."""
    return tuple(name for name, own in of(config_type).items() if own & set(tags))


def of_methods(config_type: type) -> dict[str, frozenset[str]]:
    """The fields that belong to a training method, by its name."""
    found: dict[str, set[str]] = {}
    for name, own in of(config_type).items():
        for tag in own:
            if isinstance(tag, Of):
                found.setdefault(tag.method, set()).add(name)
    return {method: frozenset(names) for method, names in found.items()}
