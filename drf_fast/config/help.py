"""The texts of ``--help``: for each setting one paragraph, and its default unless that is None.

Nothing here imports torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

STATUS = "Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated."
_WORDS = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}
_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]


def describe(config_type: type) -> str:
    """Add the help text to each field's annotation; return the description of the command."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    texts = _texts(config_type)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        options: dict[str, Any] = {"help": texts[field.name]}
        if field.default is None or _is_positional(hint):
            options["help_behavior_hint"] = _default
        if (word := _word(hint)) is not None:
            options["metavar"] = word
        extended = Annotated[hint, tyro.conf.arg(**options)]  # type: ignore[valid-type]
        config_type.__annotations__[field.name] = extended
    return f"{inspect.getdoc(config_type)}\n\n{STATUS}"


def _default(label: str) -> str:
    """The note on the default; empty for None, which the text itself explains."""
    return "" if label in ("None", "") else f"(default: {label})"


def _is_positional(hint: Any) -> bool:
    return _POSITIONAL in hint.__metadata__


def _word(hint: Any) -> str | None:
    """The placeholder of an optional flag's value, such as INT."""
    if _is_positional(hint) or typing.get_origin(hint.__origin__) not in (
        typing.Union,
        types.UnionType,
    ):
        return None
    kinds = [kind for kind in typing.get_args(hint.__origin__) if kind is not type(None)]
    return _WORDS.get(kinds[0]) if len(kinds) == 1 else None


def _texts(config_type: type) -> dict[str, str]:
    """The string below each field, on one line; a subclass's overrides its base's."""
    texts: dict[str, str] = {}
    for kind in reversed(config_type.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    texts[name] = " ".join(words.split())
    return texts
