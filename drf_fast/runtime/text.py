"""Numbers as people write them, and exceptions on one line."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

UNNAMED = "images"  # what logs record as the name of data in memory that got none


def number_of(count: int, noun: str) -> str:
    """1 image; 2,000 images."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def images_of(data: object, count: int, noun: str = "image") -> str:
    """2,000 images of mnist-mini; of your data, if that has no name; just 2,000 images for None."""
    of = f" of {'your data' if data == UNNAMED else data}" if data else ""
    return number_of(count, noun) + of


def duration(seconds: float) -> str:
    """A human-readable time: seconds, minutes, hours or days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def rounded_down(value: float, decimals: int) -> str:
    """What was certified, never shown larger than its shortest decimal form, which a log holds."""
    if not abs(value) < 1e15:  # no radius
        return f"{value:.{decimals}f}"
    exact = Decimal(repr(float(value)))
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR):f}"


def message_of(error: BaseException, most: int = 300) -> str:
    """The message of an exception on one line, at most ``most`` characters of it."""
    return " ".join(str(error).split())[:most]


def one_line(error: BaseException, most: int = 300) -> str:
    """The type and message of an exception on one line, at most ``most`` characters of it."""
    return f"{type(error).__name__}: {message_of(error, most)}".rstrip(": ")
