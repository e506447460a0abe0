"""The exceptions that the command line reports as a single sentence, without a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from outside: a file, a flag, a configuration, a checkpoint, a log.

    The message is one sentence that says what was expected, what came and how to fix it. The
    command line exits with status 2.
    """


class RunError(RuntimeError):
    """A run with valid input that failed: training diverged, for example. Exit status 1."""
