"""Numbers out of the range of their tag are refused, for every command alike; no torch here."""

from __future__ import annotations

from typing import Any

from drf_fast.config import tags
from drf_fast.config.tags import Range
from drf_fast.errors import InputError

_MOST = 2**32  # sample indices are 32-bit words of the noise counter
_LARGEST = 1e30  # float32 holds it, its inverse and products with what training makes of them


def check_ranges(config: Any) -> None:
    """Refuse numbers that their tag does not allow, and a seed that is no signed 64-bit integer.

    None and names such as "auto" pass.

    Raises:
        InputError: names the first such flag, what was expected and what came.
    """
    for name, own in tags.of(type(config)).items():
        value = getattr(config, name)
        flag = f"--{name.replace('_', '-')}"
        if not isinstance(value, (int, float)):
            continue
        if isinstance(value, int) and own & {Range.COUNT, Range.FROM_ZERO}:
            least = 1 if Range.COUNT in own else 0
            if not least <= value < _MOST:
                raise InputError(f"{flag} must lie between {least} and 2^32 - 1, got {value}")
        elif Range.FROM_ZERO in own and not 0 <= value <= _LARGEST:
            raise InputError(f"{flag} must be 0 or more, at most {_LARGEST:g}, got {value}")
        elif Range.ABOVE_ZERO in own and not 1 / _LARGEST <= value <= _LARGEST:
            raise InputError(
                f"{flag} must be a finite number above 0, from {1 / _LARGEST:g} to {_LARGEST:g}, "
                f"got {value}"
            )
        if name == "seed" and not -(2**63) <= value < 2**63:
            raise InputError(f"--seed must lie between -2^63 and 2^63 - 1, got {value}")
