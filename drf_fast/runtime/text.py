"""Numbers as people write them."""

from __future__ import annotations


def number_of(count: int, noun: str) -> str:
    """1 image; 2,000 images."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """A human-readable time: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
