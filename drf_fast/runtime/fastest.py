"""The fastest of several forms in which to compute, some of which may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch

Form = TypeVar("Form")


class Choice(NamedTuple):
    """What ``fastest`` found.

    Attributes:
        form: the fastest form; None if none works.
        made: what was made to try it.
        failures: the forms that failed, and their errors without the tensors that these held.
    """

    form: Any
    made: Any
    failures: dict[Any, Exception]


def fastest(
    groups: Iterable[Iterable[Form]], attempt: Callable[[Form], tuple[float, Any]]
) -> Choice:
    """Try forms, and take the fastest of the first group in which one works.

    Args:
        groups: forms to try, the wanted ones first.
        attempt: from a form the seconds that it takes, and what was made to try it.
    """
    failures: dict[Any, Exception] = {}
    best: tuple[float, Any, Any] | None = None
    for group in groups:
        for form in group:
            try:
                seconds, made = attempt(form)
            except Exception as error:  # whatever a network of the user's own does
                # Without its frames, which hold the tensors of that pass.
                failures[form] = error.with_traceback(None)
                continue
            if best is None or seconds < best[0]:
                best = (seconds, form, made)
        if best is not None:
            return Choice(best[1], best[2], failures)
    return Choice(None, None, failures)


def best_seconds(run: Callable[[], Any], device: torch.device, passes: int = 4) -> float:
    """Seconds of the fastest of several calls; the first ones warm up."""
    best = float("inf")
    for _ in range(passes):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
