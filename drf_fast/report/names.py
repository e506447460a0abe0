"""What a row of the report is called, and which logs share it.

The settings beside a log of ours name its method. Any other log is named by its path. Published
logs lie in layouts such as METHOD/DATA/ARCH/noise_0.50/test/sigma_0.50, where only a folder far up
tells the methods apart, so two of them share a row only where their paths differ in nothing but a
seed, and a row is called by the shortest part of its path that no other row has.

A seed is what follows the sigma at the end of a name (``noise_0.50_880``), or is called one
(``seed_1``). Other numbers, of steps for example, are not.
"""

from __future__ import annotations

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
# Names of files and folders that say nothing of the method; the third is what certify writes.
_COMMON = re.compile(
    r"|(?:sigma|noise)[_-]?\d+(?:\.\d+)?|(?:certify|predict)-s[\d.e-]+-n\d+\S*"
    r"|test|val|train|certify|certified|certificates?|predict|predictions?|logs?|results?|outputs?"
)


@dataclass(frozen=True)
class Row:
    """Which row a log belongs to: logs of one ``key`` share it; ``name`` is what it is called."""

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
    called = dict(zip(unnamed, _path_names(unnamed, taken), strict=True))
    return [
        Row(("name", name), name, sigma) if name else Row(path, called[path, sigma], sigma)
        for name, path, sigma in zip(named, paths, sigmas, strict=True)
    ]


def method_of(log: Log) -> str | None:
    """The method that the settings beside a log name; ``None`` for a network trained elsewhere."""
    method = (log.config or {}).get("method")
    return None if method in (None, "foreign") else str(method)


def sigma_of(log: Log) -> float | None:
    """From the settings beside the log, else from its name."""
    if (log.config or {}).get("sigma"):
        return (log.config or {})["sigma"]
    found = _SIGMA.search(bare_name(log.path))
    sigma = float(found[1]) if found else None
    return sigma if is_usable("sigma", sigma) else None


Path_ = tuple[str, ...]


def _parts(path: Path) -> Path_:
    """The folders and the bare name of a log, without seeds."""
    path = path.resolve()
    return tuple(map(_seedless, (*path.parent.parts[1:], bare_name(path))))


def _seedless(part: str) -> str:
    return _SEED_AFTER_SIGMA.sub(r"\1", _SEED.sub("", part))


def _path_names(
    unnamed: Sequence[tuple[Path_, float | None]], taken: set[tuple[str, float | None]]
) -> list[str]:
    """A name for each path, the shortest kind of name with which all rows differ."""
    middles = _middles(unnamed)
    kinds: list[Callable[[int], str]] = [
        lambda at: _usual(unnamed[at][0]),
        lambda at: middles[at][0],
        lambda at: middles[at][-1],
        lambda at: "/".join(middles[at]),
        lambda at: "/".join(unnamed[at][0]),
    ]
    names: list[str] = []
    for kind in kinds:
        names = [kind(at) for at in range(len(unnamed))]
        rows = {(name, sigma) for name, (_, sigma) in zip(names, unnamed, strict=True)}
        if len(rows) == len(unnamed) and not rows & taken and all(names):
            break
    return names


def _usual(path: Path_) -> str:
    """The file name without sigma and number; a folder's where that says nothing."""
    stem = re.sub(r"_+\d+$", "", _SIGMA.sub("", path[-1])).strip("_-.")
    for part in (stem, *reversed(path[:-1])):
        if _COMMON.fullmatch(part) is None:
            return part
    return stem or path[-1]


def _middles(unnamed: Sequence[tuple[Path_, float | None]]) -> list[Path_]:
    """What lies between the first and the last folders that all paths share; of one path, its end.

    Parts that only repeat the sigma of the row, which has a column of its own, do not tell paths
    apart, and are kept only where nothing else is left.
    """
    if not unnamed:
        return []
    plain = [_without_sigma(*row) for row in unnamed]
    shortest = min(map(len, plain))
    first = _shared(plain, shortest)
    last = min(_shared([path[::-1] for path in plain], shortest), shortest - first)
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


def _shared(paths: Sequence[Path_], most: int) -> int:
    return next((at for at in range(most) if len({path[at] for path in paths}) > 1), most)
