"""SIGINT and SIGTERM: the current step is finished and saved, then the process ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

_SAME_SIGNAL = 0.5  # seconds
_received: int | None = None


class Stopped(KeyboardInterrupt):
    """The process got the signal ``number`` (SIGINT, SIGTERM) and has saved its work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside the block, SIGTERM raises ``Stopped``, as SIGINT raises KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    with _handled({signal.SIGTERM: stop}):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside the block, a first SIGINT or SIGTERM is only remembered, for ``received``.

    A second one raises ``Stopped``, unless it comes at once: torchrun passes on the signal that a
    service manager has sent to its processes, too.
    """
    global _received
    since = 0.0

    def remember(number: int, frame: object) -> None:
        global _received
        nonlocal since
        if _received is None:
            _received, since = number, time.monotonic()
        elif number != _received or time.monotonic() - since > _SAME_SIGNAL:
            raise Stopped(number)

    try:
        with _handled({signal.SIGINT: remember, signal.SIGTERM: remember}):
            yield
    finally:
        _received = None


def received() -> int | None:
    """The number of the signal that arrived inside ``deferred``, or None."""
    return _received


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signal handlers in the main thread only
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
