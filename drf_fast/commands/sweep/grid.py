"""The grid of a sweep: from ``--vary`` and ``--seeds`` to one training configuration per run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from drf_fast.config import arguments, tags, training
from drf_fast.config.options import TrainConfig
from drf_fast.config.tags import Tag
from drf_fast.config.values import to_dict, updated
from drf_fast.errors import InputError

MOST_RUNS = 10_000
_LONGEST_NAME = 120  # of a sub-folder; file systems allow 255
# Fields that name a run or its files, determine where and how fast it runs (a report averages such
# runs as seeds of one training), or would change the images, so that runs could not be compared.
_FIXED = frozenset(tags.having(TrainConfig, Tag.ONE_PER_SWEEP))
_SWEEPABLE = [name for name in tags.of(TrainConfig) if name not in _FIXED]

Grid = dict[str, tuple[Any, ...]]  # values by field of TrainConfig, as they are to be compared


@dataclass(frozen=True)
class SweepRun:
    """One training run of a sweep.

    Attributes:
        name: its sub-folder.
        setting: the values of the varied fields, without the seed.
        config: the training configuration; ``out`` and ``resume`` are not set yet.
    """

    name: str
    setting: dict[str, Any]
    config: TrainConfig

    @property
    def label(self) -> str:
        """For people: ``lambda0 0.5, seed 1``."""
        parts = [f"{flag(key)} {format_value(value)}" for key, value in self.setting.items()]
        return ", ".join([*parts, f"seed {self.config.seed}"])


def flag(field: str) -> str:
    """The name of a field as users write it."""
    return field.replace("_", "-")


def format_value(value: Any) -> str:
    """A value as users write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    return " ".join(map(format_value, value)) if isinstance(value, (tuple, list)) else str(value)


def plain_value(value: Any) -> Any:
    """A value of the grid as JSON holds it; ``check_values`` restores it."""
    return str(value) if isinstance(value, Path) else value


def plain(values: Grid) -> dict[str, list[Any]]:
    """The grid as JSON holds it."""
    return {field: list(map(plain_value, of_field)) for field, of_field in values.items()}


def parse_vary(texts: Sequence[str]) -> Grid:
    """``["lambda0=0.5,1", "sigma=0.5"]`` as checked values by field.

    Raises:
        InputError: not NAME=VALUE,..., an unknown name, no value, or one that does not fit or is
            given twice.
    """
    grid: Grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        field = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not field:
            raise InputError(
                f"--vary must be a flag of train and its values, lambda0=0.5,1,2 for example, got "
                f"{text!r}"
            )
        if field in grid:
            raise InputError(
                f"--vary {flag(field)} is given twice: expected each name once, with all its "
                "values separated by commas"
            )
        grid[field] = check_values(field, _split(field, values))
    return grid


def check_values(field: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values as ``TrainConfig`` holds them.

    Raises:
        InputError: see ``parse_vary``.
    """
    source = f"--vary {flag(field)}"
    if field == "seed":
        raise InputError("--vary seed: seeds are averaged; give them as --seeds 0,1,2")
    if field in _FIXED:
        raise InputError(
            f"{source} cannot be varied within a sweep: expected one of "
            f"{', '.join(map(flag, _SWEEPABLE))}; use one sweep for each value"
        )
    if not values:
        raise InputError(f"{source} needs one value or more, got none: {flag(field)}=0.5,1,2")
    checked = [getattr(updated(TrainConfig(), {field: value}, "--vary"), field) for value in values]
    _refuse_twice(source, checked)
    return tuple(checked)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` as integers.

    Raises:
        InputError: no integer, none at all, or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,19}", word) for word in words):
        raise InputError(f"--seeds must be integers separated by commas, 0,1,2, got {text!r}")
    seeds = tuple(int(word) for word in words)
    _refuse_twice("--seeds", seeds)
    return seeds


def _refuse_twice(source: str, values: Sequence[Any]) -> None:
    for at, value in enumerate(values):
        if value in values[:at]:
            raise InputError(
                f"{source}: expected each value once, got {format_value(value)} twice; remove one"
            )


def _split(field: str, text: str) -> list[Any]:
    """Values between commas: numbers, true, false and [lists] as in JSON, words as they are."""
    if not text.strip():
        return []
    try:
        return json.loads(f"[{text}]")
    except (ValueError, RecursionError):
        words = [word.strip() for word in text.split(",")]
    if "" in words:
        raise InputError(
            f"--vary {flag(field)}: expected values separated by single commas, got {text!r}"
        )
    return [_value(word) for word in words]


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


def bases_of(
    words: list[str], grid: Grid, earlier: dict[str, TrainConfig] | None = None
) -> dict[str, TrainConfig]:
    """The settings that all runs share, by recipe and sigma: a recipe is a set of values, which
    depend on sigma and which flags override.

    Args:
        words: flags of ``train``.
        grid: values by field.
        earlier: the shared settings of the sweep that is continued; flags override them, unless
            they name a recipe or a file, which replace all of them.

    Raises:
        InputError: a bad file, an unknown recipe, or a flag that the sweep sets itself.
    """
    flags = arguments.given(words)
    for field in grid:
        if field in flags:
            raise InputError(
                f"--{flag(field)} is fixed and varied at once: expected one of them; leave out the "
                "flag or --vary"
            )
    if "certify_n" in flags:
        raise InputError("--certify-n belongs to train: expected --n for the runs of a sweep")
    anew = earlier is None or flags & {"recipe", "config"}
    bases = {}
    recipes_, sigmas = grid.get("recipe", (None,)), grid.get("sigma", (None,))
    for recipe, sigma in product(recipes_, sigmas):
        more = [] if recipe is None else ["--recipe", str(recipe)]
        more += [] if sigma is None else ["--sigma", str(sigma)]
        key = _base_name({"recipe": recipe, "sigma": sigma})
        start = None
        if not anew:
            known = dict(earlier or {})
            start = known.get(key)
            if start is None and not any(base.recipe or base.config for base in known.values()):
                start = next(iter(known.values()), None)  # settings that do not follow sigma
            if start is None and recipe is None:
                raise InputError(
                    f"--vary: {key!r} is new in this sweep, whose settings come from a recipe or "
                    "file and may follow sigma; expected --recipe or --config again"
                )
        bases[key] = arguments.merged([*words, *more], "sweep", start)
    return bases


def _base_name(setting: dict[str, Any]) -> str:
    recipe, sigma = setting.get("recipe"), setting.get("sigma")
    return (recipe or "") + ("" if sigma is None else f"@{float(sigma)}")


def expand(
    bases: dict[str, TrainConfig], grid: Grid, seeds: Sequence[int], flags: set[str]
) -> list[SweepRun]:
    """All runs, seeds innermost, each checked.

    Args:
        bases: see ``bases_of``.
        grid: values by field.
        seeds: training seeds.
        flags: fields that were set for all runs; each must have an effect in at least one of them.

    Raises:
        InputError: settings out of range, without effect, or twice the same.
    """
    count = len(seeds)
    for values in grid.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise InputError(
            f"the grid has {count:,} runs: expected {MOST_RUNS:,} at most; vary fewer values"
        )
    runs: list[SweepRun] = []
    for chosen in product(*grid.values()):
        setting = dict(zip(grid, chosen, strict=True))
        base = bases[_base_name(setting)]
        values = {field: value for field, value in setting.items() if field != "recipe"}
        for seed in seeds:
            config = updated(base, {**values, "seed": seed}, "--vary")
            config = dataclasses.replace(config, out=None, resume=False, force=False, json=False)
            training.check(config)
            for field in values:
                _refuse_no_effect(config, field, setting)
            runs.append(SweepRun(_name(setting, seed), setting, config))
    _refuse_flags_for_none(runs, flags)
    _refuse_same_runs(runs)
    return runs


def _refuse_no_effect(config: TrainConfig, field: str, setting: dict[str, Any]) -> None:
    try:
        arguments.refuse_ignored_flags(config, {field})
    except InputError as error:
        others = ", ".join(f"{flag(k)} {format_value(v)}" for k, v in setting.items() if k != field)
        where = f" (in the runs with {others})" if others else ""
        raise InputError(f"--vary {flag(field)}{where}: {error}") from error


def _refuse_flags_for_none(runs: Sequence[SweepRun], flags: set[str]) -> None:
    """Refuse flags that have no effect in any of the runs."""
    for field in sorted(flags - {"no_drf"}):
        asked = {field} | (flags & {"no_drf"})
        problems = []
        for run in runs:
            try:
                arguments.refuse_ignored_flags(run.config, asked)
            except InputError as error:
                problems.append(error)
        if len(problems) == len(runs):
            raise problems[0]


def _refuse_same_runs(runs: Sequence[SweepRun]) -> None:
    """Refuse equal runs with different names, which would be averaged as different ones."""
    seen: dict[str, SweepRun] = {}
    for run in runs:
        values = to_dict(dataclasses.replace(run.config, recipe=None, config=None))
        first = seen.setdefault(json.dumps(values, sort_keys=True), run)
        if first is not run:
            raise InputError(
                f"the runs '{first.label}' and '{run.label}' have the same settings: expected "
                "different ones; remove one value"
            )


def _name(setting: dict[str, Any], seed: int) -> str:
    parts = [f"{flag(key)}={format_value(value)}" for key, value in setting.items()]
    text = "_".join([*parts, f"seed={seed}"])
    name = re.sub(r"[^\w.=+-]", "-", text, flags=re.ASCII)
    if name != text.replace(" ", "-") or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name
