"""Part i of k of a run whose images are divided among machines; nothing here imports torch."""

from __future__ import annotations

import re
from typing import NamedTuple

_WRITTEN = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


class Shard(NamedTuple):
    """Part ``number`` of ``count`` parts, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: object) -> Shard | None:
        """The shard that is written i/k with 1 <= i <= k < 10^6; None for anything else."""
        match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        shard = None if match is None else cls(int(match[1]), int(match[2]))
        return shard if shard is not None and shard.number <= shard.count else None

    @property
    def suffix(self) -> str:
        """What the name of its log ends with."""
        return f"-shard-{self.number}-of-{self.count}"
