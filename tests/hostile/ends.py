"""How a hostile try ends, and what is wrong about it: a traceback, another status, silence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import traceback
from collections.abc import Callable
from typing import Any

from drf_fast.commands.cli import main
from drf_fast.errors import InputError


class Hang(BaseException):
    """The try took too long."""


@dataclasses.dataclass
class Outcome:
    """How the command ended: its status (None: a traceback) and its last words."""

    status: int | None
    error: str


def command(words: list[str]) -> Outcome:
    """Run ``drf-fast`` with ``words`` in this process."""
    out, error = io.StringIO(), io.StringIO()
    status: int | None = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = main(words)
        except SystemExit as end:  # of the parser
            status = end.code if isinstance(end.code, int) else 1
        except Exception:
            traceback.print_exc()
    if status is not None and status >= 128:  # a signal meant for all the tries
        raise KeyboardInterrupt
    return Outcome(status, error.getvalue())


def call(function: Callable[[], Any]) -> Outcome:
    """As ``command``, of a function that refuses with InputError."""
    try:
        function()
        return Outcome(0, "")
    except InputError as error:
        return Outcome(2, f"drf-fast: {error}")
    except Exception:
        return Outcome(None, traceback.format_exc())


def fault(outcome: Outcome) -> str | None:
    """What is wrong about an end, whatever the input."""
    if outcome.status is None or "Traceback" in outcome.error:
        return "traceback: " + " | ".join(outcome.error.strip().splitlines()[-4:])[-400:]
    if outcome.status not in (0, 1, 2):
        return f"status {outcome.status}: {outcome.error[-200:]}"
    if outcome.status and not outcome.error.strip():
        return f"status {outcome.status} without a word"
    return None
