"""Reading the logs that the user names: files, folders, patterns, as ``PATH`` or ``NAME=PATH``.

A file that is no log is an error if it is named itself; in a folder or a pattern it is skipped,
with a warning.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drf_fast.attacks.log import Attacked, is_attack_log, read_attacked
from drf_fast.certification.log import Log, bare_name, is_log, read_log
from drf_fast.certification.log.sidecar import MOST_LOG
from drf_fast.errors import InputError

# Files that usually lie beside logs and are skipped without a warning.
_NEVER_LOGS = {
    ".json", ".jsonl", ".pt", ".pth", ".ckpt", ".safetensors", ".tar", ".gz", ".png", ".jpg",
    ".jpeg", ".pdf", ".svg", ".html", ".toml", ".yaml", ".yml", ".py", ".sh", ".md",
}  # fmt: skip
_OF_A_SWEEP = {"runs.tsv", "summary.tsv"}  # tables of sweep.json beside them
_MOST_NAMED = 5


@dataclass(frozen=True)
class Found:
    """The certification logs and attack logs that were found, and skipped files."""

    logs: tuple[Log, ...]
    skipped: tuple[Path, ...]
    attacks: tuple[Attacked, ...] = ()

    def warnings(self) -> list[str]:
        """Sentences for the user."""
        said = [warning for log in self.logs for warning in log.warnings]
        if self.skipped:
            names = ", ".join(map(str, self.skipped[:_MOST_NAMED]))
            more = len(self.skipped) - _MOST_NAMED
            one = len(self.skipped) == 1
            files = (
                "1 file that is no log" if one else f"{len(self.skipped)} files that are no logs"
            )
            said.append(f"skipped {files}: {names}" + (f" and {more} more" if more > 0 else ""))
        return said


def read_all(words: Sequence[str | Path]) -> Found:
    """Read the logs that ``words`` name.

    Args:
        words: ``PATH`` or ``NAME=PATH``, where PATH is a log, a folder, which is searched
            recursively, a pattern with ``*``, ``?`` or ``[``, or ``-``: standard input.

    Raises:
        InputError: nothing there, no log there, or a malformed one.
    """
    logs: list[Log] = []
    skipped: list[Path] = []
    attacks: list[Path] = []
    for word in words:
        name, place = _split(str(word))
        if place == "-":
            logs.append(dataclasses.replace(_from_standard_input(), name=name))
            continue
        paths, others = _files(place)
        certified = [path for path in paths if not is_attack_log(path)]
        logs += [dataclasses.replace(read_log(path), name=name) for path in certified]
        attacks += [path for path in [*paths, *others] if is_attack_log(path)]
        skipped += [path for path in others if path not in attacks]
    attacked = tuple(read_attacked(path) for path in dict.fromkeys(attacks))
    return Found(tuple(logs), tuple(dict.fromkeys(skipped)), attacked)


def _from_standard_input() -> Log:
    source = Path("standard input")
    content = sys.stdin.buffer.read(MOST_LOG + 1) if sys.stdin is not None else b""
    if len(content) > MOST_LOG:
        raise InputError(
            f"cannot read {source}: expected at most {MOST_LOG:,} bytes of a log, got more; check "
            "what writes it"
        )
    return read_log(source, content)


def _split(word: str) -> tuple[str | None, str]:
    """Name and path of ``NAME=PATH``; no name if the whole word is an existing path."""
    name, equals, place = word.partition("=")
    if not equals or os.path.exists(word) or _matches(word):
        return None, word
    if not name.strip() or not place:
        raise InputError(
            f"cannot read {word!r}: expected PATH or NAME=PATH, got an empty "
            f"{'path' if name.strip() else 'name'}; write gaussian=logs/gaussian.tsv for example"
        )
    return name.strip(), place


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []


def _files(place: str) -> tuple[list[Path], list[Path]]:
    """(logs, other files) at a path, folder or pattern; a file named itself counts as a log."""
    path = Path(place).expanduser()
    if path.is_dir():
        found = _split_logs(_below(path))
    elif path.exists() or not glob.has_magic(place):
        return [path], []
    else:
        matches = [Path(match) for match in _matches(str(path))]
        if not matches:
            raise InputError(f"{place} matches no file: expected logs; check the pattern")
        found = _split_logs(
            file for match in matches for file in (_below(match) if match.is_dir() else [match])
        )
    if not found[0]:
        others = ", ".join(str(other) for other in found[1][:_MOST_NAMED]) or "none of the kind"
        raise InputError(
            f"{place} holds no log: expected files with the header of certify or predict, got "
            f"{others}; check the path, or certify first"
        )
    return found


def logs_in(folder: Path) -> list[Path]:
    """The logs of certify and predict that lie in a folder itself; below may be a data set."""
    return _split_logs(_below(folder, recursive=False))[0]


def _below(folder: Path, recursive: bool = True) -> list[Path]:
    walk = itertools.islice(os.walk(folder), None if recursive else 1)
    found = [Path(at, name) for at, _, names in walk for name in names]
    return sorted(path for path in found if not path.name.startswith("."))


def _split_logs(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(logs, other files that might be meant as logs), without parts of an unfinished log."""
    logs, others = [], []
    for path in files:
        if path.suffix.lower() in _NEVER_LOGS or "tfevents" in path.name:
            continue
        if path.name in _OF_A_SWEEP and path.with_name("sweep.json").exists():
            continue
        if is_log(path) and ".part-" not in path.name[len(bare_name(path)) :]:
            logs.append(path)
        else:
            others.append(path)
    return logs, others
