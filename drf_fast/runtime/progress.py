"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from drf_fast.runtime.streams import discard
from drf_fast.runtime.text import duration

_PLAIN_SECONDS, _BAR_SECONDS = 10.0, 0.5
_WIDE = 110  # columns of a terminal that has room for a bar beside the figures


def say(message: str) -> None:
    """Print one line for the user, on stderr; if nobody reads it any more, the work goes on."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


class _TimeLeft(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        text = super().render(task)
        return text if task.finished else text + " left"


class _Note(ProgressColumn):
    """The figures; a narrow terminal cuts them, and nothing else."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class Tracker:
    """A progress display that counts to ``total`` under ``label``; a context manager.

    On a terminal it is one line: steps done, time left (when done: time taken) and a note. Lines
    printed meanwhile scroll above it.

    ``advance`` takes the number of steps done and a short note (figures, rate) shown beside them,
    or a function that returns it. The function is called only when the note is shown, at most twice
    a second, since reading a number may synchronise with a GPU.

    Args:
        label: what is counted.
        total: steps.
        quiet: whether to count without showing anything.
        done: steps already done by an earlier, interrupted run.
    """

    def __init__(self, label: str, total: int, quiet: bool = False, done: int = 0) -> None:
        self._label, self._total, self._quiet = label, total, quiet
        self._done = self._before = done
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            console = Console(stderr=True)
            self._bar = Progress(
                TextColumn("{task.description}"),
                *([BarColumn(20)] if console.width >= _WIDE else []),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                _TimeLeft(
                    compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
                ),
                _Note(),
                console=console,
                # Output on a terminal scrolls above the line; output to a file stays unchanged.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Tracker:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error_type is None and self._done > self._before and not self._quiet:
            seconds = time.monotonic() - self._started
            say(f"{self._label}: {self._done}/{self._total} done in {seconds:.1f} s")

    def advance(self, steps: int = 1, note: str | Callable[[], str] = "") -> None:
        """Count ``steps`` more, and show ``note`` when the display is updated."""
        self._done += steps
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)
            if now - self._printed >= _BAR_SECONDS or self._done >= self._total:
                self._printed = now
                self._bar.update(self._task, note=note if isinstance(note, str) else note())
            return
        if now - self._printed >= _PLAIN_SECONDS and not self._quiet:
            self._printed = now
            note = note if isinstance(note, str) else note()
            seconds_per_step = (now - self._started) / (self._done - self._before)
            left = duration(seconds_per_step * (self._total - self._done))
            text = f"{self._label}: {self._done}/{self._total}, {left} left"
            say(f"{text}, {note}" if note else text)
