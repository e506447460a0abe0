"""Parsing durations; nothing here imports torch."""

from __future__ import annotations

import re

from drf_fast.errors import InputError

_UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_MAX_SECONDS = 30 * 86400  # seconds
_DURATION = re.compile(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?) ?({'|'.join(_UNITS)})")


def seconds(value: float | str, flag: str) -> float:
    """``value``, seconds or a number with a unit (s, min, h, d), in seconds.

    Raises:
        InputError: malformed, less than a second, or more than 30 days.
    """
    match = _DURATION.fullmatch(str(value).strip())
    parsed = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= parsed <= _MAX_SECONDS:
        raise InputError(
            f"--{flag} must be a time from 1 s to 30 d, in seconds or with s, min, h or d, 90 or "
            f"10min for example, got {value!r}"
        )
    return parsed
