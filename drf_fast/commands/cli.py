"""The command line: ``drf-fast COMMAND``; ``_USAGE`` lists the commands.

Nothing heavy is imported before a command runs, so ``--help`` answers at once. Results go to
stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from drf_fast.errors import InputError, RunError
from drf_fast.runtime import signals
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.streams import discard
from drf_fast.runtime.text import message_of
from drf_fast.version import __version__

_USAGE = """\
usage: drf-fast COMMAND [OPTIONS]

Train and certify provably robust image classifiers by randomized smoothing.

  train     train a classifier, certify some test images, draw the curve
            (no option: DRF on embedded MNIST images, one to four minutes on two cores)
  certify   certify test images with a trained network, one log line each
  predict   classify test images with the smoothed classifier
  attack    attack the smoothed classifier and check its certificates
  show      draw test images: noisy, attacked, their votes and certificates
  report    summarize certification logs, ours and published ones: tables and figures
  sweep     train and certify a grid of settings; table and figures
  gap       measure and draw the confidence gap of networks under noise
  doctor    show what this installation can do, and how to get what is missing; --self-test
            compares every operation on every device of this machine with the reference

drf-fast COMMAND --help lists the options of a command; --version prints the version.
Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated.
"""


def _train(words: list[str]) -> int:
    from drf_fast.config.arguments import parse_train

    config = parse_train(words)
    from drf_fast.commands import train

    return train.run(config)


def _certify(words: list[str]) -> int:
    from drf_fast.config.arguments import parse
    from drf_fast.config.look import ReportConfig
    from drf_fast.config.options import CertifyConfig

    config = parse(CertifyConfig, "certify", words)
    from drf_fast.certification.log import read_log
    from drf_fast.commands import certify, report
    from drf_fast.runtime import processes

    log = certify.certify(config)
    if log is None or processes.rank() > 0:
        return 0
    if config.shard is not None and len(read_log(log)) == 0:
        return 0  # this shard has no image to report on
    return report.run(ReportConfig((str(log),), json=config.json))


def _report(words: list[str]) -> int:
    from drf_fast.config.arguments import given, parse
    from drf_fast.config.look import ReportConfig

    config = parse(ReportConfig, "report", words)
    from drf_fast.commands import report

    return report.run(config, fitting="table1" not in given(words))


def _sweep(words: list[str]) -> int:
    from drf_fast.config.arguments import parse_sweep

    config, train_words = parse_sweep(words)
    from drf_fast.commands import sweep

    return sweep.run(config, train_words)


# Where the settings of the commands are that are parsed and run alike.
_ALIKE = {
    "predict": ("options", "PredictConfig"),
    "attack": ("look", "AttackConfig"),
    "show": ("look", "ShowConfig"),
    "gap": ("look", "GapConfig"),
}


def _alike(command: str, words: list[str]) -> int:
    from drf_fast.config.arguments import parse

    module, name = _ALIKE[command]
    config_type = getattr(importlib.import_module(f"drf_fast.config.{module}"), name)
    config = parse(config_type, command, words)
    return importlib.import_module(f"drf_fast.commands.{command}").run(config)


def _doctor(words: list[str]) -> int:
    if importlib.util.find_spec("tyro") is None:  # this command runs where a dependency is missing
        from drf_fast.commands import doctor

        return doctor.run(json="--json" in words, self_test="--self-test" in words)
    from drf_fast.config.arguments import parse
    from drf_fast.config.options import DoctorConfig

    config = parse(DoctorConfig, "doctor", words)
    from drf_fast.commands import doctor

    return doctor.run(json=config.json, self_test=config.self_test)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "certify": _certify,
    "predict": partial(_alike, "predict"),
    "attack": partial(_alike, "attack"),
    "show": partial(_alike, "show"),
    "report": _report,
    "sweep": _sweep,
    "gap": partial(_alike, "gap"),
    "doctor": _doctor,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    _open_streams()
    try:
        return _main(words)
    except SystemExit as error:  # raised by the parser of the flags
        if error.code:
            _tell_others(words, "its flags are wrong, as it says itself")
        raise
    except BaseException as error:
        _tell_others(words, _brief(error))
        raise


def _main(words: list[str]) -> int:
    try:
        with signals.sigterm_interrupts():
            status = _run(words)
        sys.stdout.flush()  # raises here for a full device, not when Python exits
        return status
    except BrokenPipeError:  # the reader, "head" for example, has closed the pipe
        discard(sys.stdout)
        _tell_others(words, "nobody reads its output any more")
        return 0
    except (InputError, RunError) as error:
        return _ended(words, str(error), 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        discard(sys.stdout)
        where = f" ({error.filename!r})" if error.filename else ""
        return _ended(
            words, f"{error.strerror or error}{where}; what was written before is kept", 1
        )
    except ModuleNotFoundError as error:
        return _ended(words, _missing(error), 1)
    except ImportError as error:
        if "shared object" not in str(error):
            raise
        return _ended(
            words,
            f"expected to load the libraries of torch, got {_brief(error)}; allow more memory "
            "(ulimit -v unlimited), or install torch again",
            1,
        )
    except KeyboardInterrupt as error:
        hint = "; the same command with --resume (and no --force) goes on"
        if not _can_be_resumed(words):
            hint = ""
        number = error.number if isinstance(error, signals.Stopped) else signal.SIGINT
        word = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
        return _ended(words, f"{word}{hint}", 128 + number)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _ended(
            words,
            f"expected enough memory for the batches asked for, got {_brief(error)}; lower "
            "--batch-size or --num-samples",
            1,
        )


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"drf-fast {__version__}")
        return 0
    command = _COMMANDS.get(words[0])
    if command is None:
        return _fail(
            f"expected a command ({', '.join(_COMMANDS)}), got {words[0]!r}; see 'drf-fast --help'",
            2,
        )
    return command(words[1:])


def _open_streams() -> None:
    """Replace standard output and error by os.devnull if they were closed before the start."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack the plus-minus sign
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _can_be_resumed(words: list[str]) -> bool:
    """Whether the command leaves something that --resume goes on with."""
    flags = {word.replace("_", "-") for word in words[1:]}
    return words[:1] != [] and (
        words[0] in ("train", "certify", "attack", "sweep") and not flags & {"--dry-run", "--plan"}
    )


def _missing(error: ModuleNotFoundError) -> str:
    name = str(error.name).partition(".")[0]
    if name == "drf_fast":
        raise error
    return (
        f"expected the package {name}, which drf_fast needs here, got none; pip install {name}, "
        "and see 'drf-fast doctor' for what else is missing"
    )


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__} ({message_of(error, 160) or 'no more memory'})"


def _ended(words: list[str], message: str, status: int) -> int:
    _fail(message, status)
    _tell_others(words, message)
    return status


def _tell_others(words: list[str], reason: str) -> None:
    """Tell the other processes of a job why this one ends, so that they do not wait for it."""
    divided = words[:1] and words[0] in ("train", "certify")
    if divided and os.environ.get("WORLD_SIZE", "") not in ("", "1"):
        with contextlib.suppress(ImportError):  # torch may be the missing package
            from drf_fast.runtime import processes

            processes.refuse(reason)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # if standard error fails, the exit status still counts
        print(f"drf-fast: {message}", file=sys.stderr, flush=True)
    return status
