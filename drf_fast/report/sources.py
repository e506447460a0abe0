"""Reading the logs that the user names: files, folders, patterns, as ``PATH`` or ``NAME=PATH``.

A file that is no log is an error if it is named itself; in a folder or a pattern it is skipped,
with a warning. Of several certification logs of one network in a folder one is taken, the one that
``attack`` and ``show`` take, with a warning too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import gzip
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drf_fast.attacks.log import Attacked, differences, is_attack_log, read_attacked
from drf_fast.certification.log import Log, is_log, read_log
from drf_fast.certification.log.rows import is_header
from drf_fast.certification.log.sidecar import MOST_LOG
from drf_fast.config import run_files
from drf_fast.errors import InputError
from drf_fast.report.shards import fullest, join_shards

# Files that usually lie beside logs and are skipped without a warning.
_NEVER_LOGS = {
    ".json", ".jsonl", ".pt", ".pth", ".ckpt", ".safetensors", ".tar", ".gz", ".png", ".jpg",
    ".jpeg", ".pdf", ".svg", ".html", ".toml", ".yaml", ".yml", ".py", ".sh", ".md",
}  # fmt: skip
_TABLES_OF_A_SWEEP = {run_files.RUNS, run_files.SUMMARY_TABLE}
_MOST_NAMED = 5
_LONGEST_HEADER = 4096  # bytes


@dataclass(frozen=True)
class Found:
    """The certification logs and attack logs that were found, and skipped files.

    ``choices`` are sentences on the logs that were taken of several of one network.
    """

    logs: tuple[Log, ...]
    skipped: tuple[Path, ...]
    attacks: tuple[Attacked, ...] = ()
    choices: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """Sentences for the user."""
        said = [warning for log in self.logs for warning in log.warnings]
        said += self.choices
        said += _copies(self.logs)
        if self.skipped:
            names = ", ".join(map(str, self.skipped[:_MOST_NAMED]))
            more = len(self.skipped) - _MOST_NAMED
            one = len(self.skipped) == 1
            files = (
                "1 file that is no log" if one else f"{len(self.skipped)} files that are no logs"
            )
            packed = any(path.suffix == ".gz" for path in self.skipped)
            said.append(
                f"skipped {files}: {names}"
                + (f" and {more} more" if more > 0 else "")
                + ("; to report on a packed log unpack it" if packed else "")
            )
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
    choices: list[str] = []
    for word in words:
        name, place = _split(str(word))
        if place == "-":
            logs.append(dataclasses.replace(_from_standard_input(), name=name))
            continue
        named = [Path(os.path.expanduser(path)) for path in _matches(place) or [place]]
        paths, others = _files(place)
        certified = [path for path in paths if not is_attack_log(path)]
        found = [dataclasses.replace(read_log(path), name=name) for path in certified]
        in_folders = [log for log in found if log.path not in named]
        taken, chosen = _one_of_each_network(in_folders)
        choices += chosen
        left_out = {log.path for log in in_folders} - {log.path for log in taken}
        logs += [log for log in found if log.path not in left_out]
        attacks += [path for path in [*paths, *others] if is_attack_log(path)]
        skipped += [path for path in others if path not in attacks]
    attacked = tuple(read_attacked(path) for path in dict.fromkeys(attacks))
    return Found(tuple(logs), tuple(dict.fromkeys(skipped)), attacked, tuple(choices))


def _copies(logs: Sequence[Log]) -> list[str]:
    """Sentences on logs without a configuration that have the same lines, times included."""
    seen: dict[tuple[bytes, ...], Path] = {}
    said = []
    for log in logs:
        if log.config is not None:  # it names its network
            continue
        columns = (log.idx, log.label, log.predict, log.radius, log.seconds)
        first = seen.setdefault(tuple(column.tobytes() for column in columns), log.path)
        if first != log.path:
            said.append(
                f"{first} and {log.path} have the same lines: if one is a copy of the other, leave "
                "it out, or it counts as another network"
            )
    return said


def _one_of_each_network(logs: Sequence[Log]) -> tuple[list[Log], list[str]]:
    """Without logs of a network that has a fuller one in the same folder; sentences on these.

    The shards of a run count as one log.
    """
    alike: list[list[Log]] = []
    for log in logs:
        same = next((others for others in alike if _of_one_network(log, others[0])), None)
        if same is None:
            alike.append([log])
        else:
            same.append(log)
    left_out: list[Path] = []
    choices = []
    for members in alike:
        taken = _taken(members)
        others = [log.path for log in members if log.path not in taken]
        if others:
            choices.append(
                f"{taken[0].parent} holds several logs of one network: took {_names(taken)}, with "
                "the most images (then the largest n, then one that did not stop early), left out "
                f"{_names(others)}; name a log to choose it"
            )
            left_out += others
    return [log for log in logs if log.path not in left_out], choices


def _of_one_network(one: Log, other: Log) -> bool:
    """Whether both are certificates of one network, images and noise level, in one folder."""
    here, there = one.config or {}, other.config or {}
    return (
        one.path.parent == other.path.parent
        and not (one.predictions or other.predictions)
        and here.get("checkpoint_sha256") is not None
        and not differences(there, here)
    )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _taken(logs: Sequence[Log]) -> list[Path]:
    """The fullest of some logs of one network, or its shards; all where they cannot be joined."""
    try:
        joined = join_shards(logs)
    except InputError:  # the report says why
        return [log.path for log in logs]
    one = fullest(joined)
    return list(one.parts.values()) or [one.path]


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
    """Name and path of ``NAME=PATH``; no name if the whole word is a path."""
    name, equals, place = word.partition("=")
    if not equals or os.path.exists(os.path.expanduser(word)) or _matches(word):
        return None, word
    if name.startswith(("/", "~", ".")) or os.path.isdir(os.path.dirname(name)):
        return None, word  # a folder's name may have the sign, as those of a sweep's runs
    if not name.strip() or not place:
        raise InputError(
            f"cannot read {word!r}: expected PATH or NAME=PATH, got an empty "
            f"{'path' if name.strip() else 'name'}; write gaussian=logs/gaussian.tsv for example"
        )
    return name.strip(), place


def _matches(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []


def _files(place: str) -> tuple[list[Path], list[Path]]:
    """(logs, other files) at a path, folder or pattern; a file named itself counts as a log."""
    path = Path(os.path.expanduser(place))  # which leaves the name of an unknown user as it is
    if path.is_dir():
        found = _split_logs(_below(path))
    elif path.exists() or not glob.has_magic(place):
        return [path], []
    else:
        matches = [Path(match) for match in _matches(place)]
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


def _is_packed_log(path: Path) -> bool:
    if path.suffix.lower() != ".gz":
        return False
    with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as content:
        return is_header(content.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace"))
    return False


def _split_logs(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(logs, other files that might be meant as logs), without parts of an unfinished log."""
    logs, others = [], []
    for path in files:
        if path.suffix.lower() in _NEVER_LOGS and not _is_packed_log(path):
            continue
        if "tfevents" in path.name:
            continue
        if path.name in _TABLES_OF_A_SWEEP and path.with_name(run_files.SWEEP).exists():
            continue
        if is_log(path) and not re.search(r"\.part-\d+$", path.name):
            logs.append(path)
        else:
            others.append(path)
    return logs, others
