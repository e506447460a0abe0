"""Parsing a command line into a configuration: flags > TOML file > recipe > default."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from drf_fast.config import published, recipes, run_files, tags
from drf_fast.config.help import description, sectioned
from drf_fast.config.options import SweepConfig, TrainConfig
from drf_fast.config.tags import Role, Tag
from drf_fast.config.training import run_folder, without_effect
from drf_fast.config.values import refuse_unnamed_code, updated, without_code
from drf_fast.errors import InputError
from drf_fast.runtime.files import read_json, read_parsed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")

_MOST_TOML = 2**16  # bytes; all settings together take two thousand
_NOT_INHERITED = frozenset(tags.having(TrainConfig, Role.CALL, Tag.RENEWED))


def parse(config_type: type[_T], command: str, words: list[str]) -> _T:
    """The configuration of ``command``; exits after printing the help or a usage error.

    Raises:
        InputError: a flag of the published code.
    """
    published.refuse(words, _names(config_type))
    config = _expanded(_cli(config_type, command, words))
    check_places(config)
    return config


def _expanded(config: _T) -> _T:
    """``config`` with ``~`` at the start of its paths replaced, as a shell does not after ``=``."""
    fields: Any = config
    paths = {field.name: getattr(config, field.name) for field in dataclasses.fields(fields)}
    home = {
        name: path.expanduser()
        for name, path in paths.items()
        if isinstance(path, Path) and path.parts[:1] == ("~",)
    }
    return dataclasses.replace(fields, **home)


def _cli(config_type: Any, command: str, words: list[str], **options: Any) -> Any:
    """``tyro.cli``, with help texts and sections only if the help is requested."""
    prog = f"drf-fast {command}"
    if {"-h", "--help"} & set(words):
        text = description(config_type)
        tyro.cli(sectioned(config_type), prog=prog, args=["--help"], description=text)
    return tyro.cli(config_type, prog=prog, args=words, **options)


def check_places(config: Any) -> None:
    """Refuse names of files and folders that cannot be recorded or written.

    Raises:
        InputError: names the flag.
    """
    for name in tags.having(type(config), Role.PLACE):
        value = str(getattr(config, name))
        if "\0" in value or not _is_utf8(value):
            raise InputError(
                f"--{name.replace('_', '-')} must be a path in UTF-8, for it is recorded with the "
                f"results, got {value!r}; choose another name"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(config_type: Any) -> set[str]:
    return set(tags.of(config_type))


def parse_train(words: list[str]) -> TrainConfig:
    """The configuration of ``drf-fast train``, merged with its TOML file, recipe or earlier run.

    Raises:
        InputError: a bad file, an unknown recipe, or a flag or key that the method would ignore.
    """
    config, file = _merged(words)
    check_places(config)
    refuse_ignored_flags(config, given(words))
    if file is not None:
        _refuse_ignored_keys(config, file)
    return config


def parse_sweep(words: list[str]) -> tuple[SweepConfig, list[str]]:
    """The configuration of ``drf-fast sweep``, and the other words, flags of ``train``."""
    published.refuse(words, _names(SweepConfig) | _names(TrainConfig))
    config, others = _cli(SweepConfig, "sweep", words, return_unknown_args=True)
    config = _expanded(config)
    check_places(config)
    return config, others


def merged(
    words: list[str], command: str = "train", start: TrainConfig | None = None
) -> TrainConfig:
    """The configuration of ``train``: flags > TOML file > recipe > default or resumed run.

    With ``start``: flags > ``start``.

    Raises:
        InputError: a bad file or an unknown recipe.
    """
    return _merged(words, command, start)[0]


class _File(NamedTuple):
    """A TOML file of settings, as read."""

    path: Path
    values: dict[str, Any]


def _merged(
    words: list[str], command: str = "train", start: TrainConfig | None = None
) -> tuple[TrainConfig, _File | None]:
    published.refuse(words, _names(TrainConfig))

    def flags_over(base: TrainConfig) -> TrainConfig:
        return _cli(TrainConfig, command, words, default=base)

    if start is not None:
        return _expanded(flags_over(start)), None
    config = _expanded(flags_over(TrainConfig()))
    path = config.config
    file = {} if path is None else read_toml(path)
    recipe = config.recipe or file.get("recipe")

    def with_recipe(base: TrainConfig) -> TrainConfig:
        """``base`` overridden by recipe, file and flags; the resulting sigma selects the recipe's
        values.
        """
        config = flags_over(updated(base, file, str(path)))
        if recipe is not None:
            name, sigma = str(recipe), config.sigma
            base = updated(base, recipes.get(name, sigma), f"recipe {name}")
            config = flags_over(updated(base, file, str(path)))
        return config

    config = with_recipe(TrainConfig())
    if config.resume:
        config = with_recipe(_settings_of_saved_run(_expanded(config)))
    if recipe is not None and recipes.depends_on_sigma(str(recipe)):
        _say_nearest_sigma(str(recipe), config.sigma)
    return _expanded(config), None if path is None else _File(path, file)


def given(words: list[str]) -> set[str]:
    """The fields that the flags among ``words`` set; --no-drf gives ``no_drf`` and ``drf``."""
    names = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    return {field.replace("-", "_") for name in names for field in (name, name.removeprefix("no-"))}


def _say_nearest_sigma(recipe: str, sigma: float) -> None:
    if sigma not in recipes.SIGMAS and 0 < sigma < float("inf"):
        print(
            f"recipe {recipe}: nothing is published for sigma {sigma:g}; its values are those for "
            f"sigma {recipes.nearest(sigma):g}",
            file=sys.stderr,
        )


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises:
        InputError: unreadable, or not TOML.
    """
    remedy = "write lines such as 'sigma = 0.5'"
    return read_parsed(path, tomllib.loads, "TOML", "check --config", remedy, _MOST_TOML)


def _settings_of_saved_run(config: TrainConfig) -> TrainConfig:
    """The settings of the run in the folder, so that --out and --resume are enough."""
    path = run_folder(config) / run_files.SETTINGS
    if not path.exists():
        return config
    saved = read_json(path)
    if not isinstance(saved, dict):
        raise InputError(f"{path}: expected the settings of a run, got {type(saved).__name__}")
    names = tags.of(TrainConfig).keys() - _NOT_INHERITED
    known = {key: value for key, value in saved.items() if key in names}
    refuse_unnamed_code(known.get("arch"), config.arch, str(path))
    return updated(TrainConfig(), without_code(known), str(path))


def refuse_ignored_flags(config: TrainConfig, given: set[str], source: str = "") -> None:
    """Refuse flags that have no effect with the chosen method; ``source`` says where they stand.

    Raises:
        InputError: names the fields of ``given`` that the method or the data set would ignore.
    """
    if "data_dir" in given and config.data == "mnist-mini":
        raise InputError(
            f"{source}--data-dir would have no effect with --data mnist-mini, whose images are in "
            "the package: expected another --data, such as mnist, got none; name it, or leave "
            "--data-dir out"
        )
    reasons = without_effect(config)
    if "no_drf" in given:
        reasons.pop("drf", None)
    ignored = sorted(given & set(reasons))
    if ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        why = "; ".join(dict.fromkeys(reasons[name] for name in ignored))
        raise InputError(
            f"{source}{flags} would have no effect with --method {config.method}: {why}; leave it "
            "out or choose another method"
        )


def _refuse_ignored_keys(config: TrainConfig, file: _File) -> None:
    """Refuse what a TOML file sets without effect, alone and with the flags over it.

    A key with the value that holds without it, too, is no mistake.
    """
    alone, changed = _set_by(file, config)
    ignored = changed & (without_effect(alone).keys() | {"data_dir"})
    refuse_ignored_flags(config, ignored, f"{file.path}: ")


def set_in_file(config: TrainConfig) -> set[str]:
    """The fields to which the TOML file of ``config`` gives other values than they have without."""
    if config.config is None:
        return set()
    return _set_by(_File(config.config, read_toml(config.config)), config)[1]


def _set_by(file: _File, config: TrainConfig) -> tuple[TrainConfig, set[str]]:
    """The settings of the file alone, over the recipe of ``config``, and the fields it changes."""
    usual = TrainConfig()
    if config.recipe is not None:
        usual = updated(usual, recipes.get(config.recipe, config.sigma), f"recipe {config.recipe}")
    alone = updated(usual, file.values, str(file.path))
    names = {field.name for field in dataclasses.fields(alone)}
    changed = {name for name in names if getattr(alone, name) != getattr(usual, name)}
    # drf = false holds for any method, as --no-drf.
    return alone, changed if alone.drf else changed - {"drf"}
