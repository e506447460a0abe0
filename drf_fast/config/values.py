"""Configurations from plain values (a file's, a recipe's, a checkpoint's), and to them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from drf_fast.config.look import AttackConfig
from drf_fast.config.options import CertifyConfig, TrainConfig
from drf_fast.errors import InputError

Config = TypeVar("Config", TrainConfig, CertifyConfig, AttackConfig)


def names_code(arch: str) -> bool:
    """Whether ``--arch`` is ``package.module:factory``, so that to build it is to run code."""
    return ":" in arch


def without_code(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file without an ``arch`` that names code: only the command line may."""
    return {k: v for k, v in values.items() if k != "arch" or not names_code(str(v))}


def refuse_unnamed_code(recorded: Any, arch: str, source: str) -> None:
    """Refuse to go on with code that ``source`` has recorded and ``--arch`` does not name.

    Raises:
        InputError: names ``source`` and the flag to repeat.
    """
    if names_code(str(recorded)) and arch != recorded:
        raise InputError(
            f"{source} is of a network of your own: expected its --arch on the command line, got "
            f"{arch!r}; to run that code again, repeat --arch {recorded}"
        )


def updated(config: Config, values: dict[str, Any], source: str) -> Config:
    """``config`` with ``values`` (keys as flags or as fields) in place; every value is checked.

    Raises:
        InputError: an unknown key, a value of the wrong type, or an ``arch`` that names code, which
            only the command line may do; names ``source``.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{source}: expected settings of the command, got the unknown key {key!r}{hint}"
            )
        changes[name] = _checked(value, hints[name], f"{source}: {key}")
    if names_code(str(changes.get("arch"))):
        raise InputError(
            f"{source}: expected the name of an architecture, got {changes['arch']!r}, which names "
            "code; pass it as --arch on the command line"
        )
    return dataclasses.replace(config, **changes)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON-ready values."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _checked(value, option, where)
            except InputError:
                continue
    elif origin is Literal:
        if value in options:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(item, options[0], where) for item in value)
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and type(value) is hint:
        return value
    expected = " or ".join(map(str, options)) if origin is Literal else str(hint)
    expected = expected.replace("<class '", "").replace("'>", "")
    raise InputError(f"{where}: expected {expected}, got {value!r}")
