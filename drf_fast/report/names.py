"""Naming the rows of a report, and assigning logs to rows.

The settings beside a log of ours name its method. Any other log is named by its path. Published
logs lie in layouts such as METHOD/DATA/ARCH/noise_0.50/test/sigma_0.50, where only a folder far up
tells the methods apart, so two of them share a row only where their paths differ in nothing but a
seed, and a row is named by the shortest part of its path that no other row has.

A seed is what follows the sigma at the end of a name (``noise_0.50_880``), or is called one
(``seed_1``). Other numbers, of steps for example, are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drf_fast.certification.log import Log, bare_name
from drf_fast.certification.log.audit import is_usable

_SIGMA = re.compile(r"(?:sigma|noise)[_-]?(\d+(?:\.\d+)?)")
_SEED = re.compile(r"(?<=[\d._-])_*seed[_-]?\d+|^seed[_-]?\d+|[_.-]+seed[_-]?\d+", re.IGNORECASE)
_SEED_AFTER_SIGMA = re.compile(rf"({_SIGMA.pattern})_+\d+$")
# What certify and predict add to the name of a checkpoint.
_WRITTEN = re.compile(r"(?<=.)-(?:certify|predict)-s[\d.e-]+-n\d+\S*$")
# Names of files and folders that say nothing of the method; the third is what certify writes.
_COMMON = re.compile(
    r"|(?:sigma|noise)[_-]?\d+(?:\.\d+)?|(?:certify|predict)-s[\d.e-]+-n\d+\S*"
    r"|test|val|train|certify|certified|certificates?|predict|predictions?|logs?|results?|outputs?"
)


@dataclass(frozen=True)
class Row:
    """The row that a log belongs to; logs with the same ``key`` share a row."""

    key: tuple[Any, ...]
    name: str
    sigma: float | None


def rows_of(logs: Sequence[Log]) -> list[Row]:
    """The row of each log: named by the user, else by its settings, else by its path."""
    sigmas = [sigma_of(log) for log in logs]
    named = [log.name or method_of(log) for log in logs]
    paths = [_parts(log.path) for log in logs]
    unnamed = list(dict.fromkeys(
        (path, sigma) for name, path, sigma in zip(named, paths, sigmas, strict=True) if not name
    ))  # fmt: skip
    taken = {(name, sigma) for name, sigma in zip(named, sigmas, strict=True) if name}
    name_of_path = dict(zip(unnamed, _path_names(unnamed, taken), strict=True))
    return [
        Row(("name", name), name, sigma) if name else Row(path, name_of_path[path, sigma], sigma)
        for name, path, sigma in zip(named, paths, sigmas, strict=True)
    ]


def method_of(log: Log) -> str | None:
    """The method that the settings beside a log name; ``None`` for a network trained elsewhere."""
    method = (log.config or {}).get("method")
    return None if method in (None, "foreign") else str(method)


def sigma_of(log: Log) -> float | None:
    """The sigma in the log's settings, else in its name; None if there is none."""
    if (log.config or {}).get("sigma"):
        return (log.config or {})["sigma"]
    found = _SIGMA.search(bare_name(log.path))
    sigma = float(found[1]) if found else None
    return sigma if is_usable("sigma", sigma) else None


Path_ = tuple[str, ...]


def _parts(path: Path) -> Path_:
    """The folders and the bare name of a log, with seeds removed."""
    path = Path(os.path.abspath(path))  # links keep their names, whatever stores their content
    return tuple(map(_without_seed, (*path.parent.parts[1:], bare_name(path))))


def _without_seed(part: str) -> str:
    return _SEED_AFTER_SIGMA.sub(r"\1", _SEED.sub("", part))


def _path_names(
    unnamed: Sequence[tuple[Path_, float | None]], taken: set[tuple[str, float | None]]
) -> list[str]:
    """A name for each path, the shortest kind of name with which all rows differ."""
    whole = unnamed
    # A folder that is nothing but a seed has no part in a name.
    unnamed = [(tuple(filter(None, path)), sigma) for path, sigma in whole]
    middles = _distinguishing_parts(unnamed)
    kinds: list[Callable[[int], str]] = [
        lambda i: _short_name(unnamed[i][0]),
        lambda i: middles[i][0],
        lambda i: middles[i][-1],
        lambda i: "/".join(middles[i]),
        lambda i: "/".join(unnamed[i][0]),
        lambda i: "/".join(whole[i][0]),
    ]
    names: list[str] = []
    for kind in kinds:
        names = [kind(i) for i in range(len(unnamed))]
        rows = {(name, sigma) for name, (_, sigma) in zip(names, unnamed, strict=True)}
        if len(rows) == len(unnamed) and not rows & taken and all(names):
            break
    return names


def _short_name(path: Path_) -> str:
    """The file name without sigma and number; if nothing is left, the name of a folder."""
    stem = _WRITTEN.sub("", path[-1])
    stem = re.sub(r"_+\d+$", "", _SIGMA.sub("", stem)).strip("_-.")
    for part in (stem, *reversed(path[:-1])):
        if _COMMON.fullmatch(part) is None:
            return part
    return stem or path[-1]


def _distinguishing_parts(unnamed: Sequence[tuple[Path_, float | None]]) -> list[Path_]:
    """The parts between the leading and trailing folders that all paths share; of one path its end.

    Parts that only repeat the sigma of the row, which has its own column, do not distinguish paths,
    and are kept only if nothing else is left.
    """
    if not unnamed:
        return []
    plain = [_without_sigma(*row) for row in unnamed]
    shortest = min(map(len, plain))
    first = _common_length(plain, shortest)
    last = min(_common_length([path[::-1] for path in plain], shortest), shortest - first)
    if any(len(path) == first + last for path in plain):  # one more, or nothing is left of it
        first, last = (first - 1, last) if first else (first, last - 1)
    middles = []
    for (path, _), kept in zip(unnamed, plain, strict=True):
        end = len(path) - last
        middles.append(tuple(filter(None, kept[first:end])) or path[first:end])
    return middles


def _without_sigma(path: Path_, sigma: float | None) -> Path_:
    found = (_SIGMA.fullmatch(part) for part in path)
    return tuple(
        "" if match is not None and float(match[1]) == sigma else part
        for part, match in zip(path, found, strict=True)
    )


def _common_length(paths: Sequence[Path_], most: int) -> int:
    return next((at for at in range(most) if len({path[at] for path in paths}) > 1), most)
