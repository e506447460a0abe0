"""The texts of ``--help``: settings in sections, each with a paragraph, and its default unless that
is None.

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

from drf_fast.config import tags
from drf_fast.config.tags import Of, Role, Section, Tag

STATUS = "Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated."
_WORDS = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}
_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
_OUTPUT = ("output", "Files, interruptions, what is printed.")
# Title and sentence of a section, by the tag that puts a setting there; earlier ones win.
_SECTIONS: dict[Section | Tag | Role, tuple[str, str]] = {
    **{section: section.value for section in Section},
    Tag.SOFT_BALL: ("drf", "The soft ball of an adversary with --drf."),
    Tag.ADVERSARY: ("adversary", "For methods that train on adversarial images."),
    Role.SOURCE: ("sources", "Where settings and results are read."),
    Role.RESULT: ("method", "What shapes the result."),
    Role.SPEED: Section.COMPUTATION.value,
    Role.CERTIFICATES: ("certificates", "For the certificates after training."),
    Role.PLACE: _OUTPUT,
    Role.CALL: _OUTPUT,
    Role.LIMIT: _OUTPUT,
}


def description(config_type: type) -> str:
    """What the help says of the command before it lists the flags."""
    return f"{inspect.getdoc(config_type)}\n\n{STATUS}"


def sectioned(config_type: type) -> type:
    """A type with the flags of ``config_type`` and their help texts, its fields in sections.

    A section is a field, and its settings are fields of that field's type, for so tyro draws boxes;
    a type whose flags are all of one section keeps them without.
    """
    hints, texts = typing.get_type_hints(config_type, include_extras=True), _texts(config_type)
    outside: list[Any] = []  # of any section: the words without a flag
    sections: dict[tuple[str, str], list[Any]] = {}
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        options: dict[str, Any] = {"help": texts[field.name], "prefix_name": False}
        if field.default is None or _is_positional(hint):
            options["help_behavior_hint"] = _default
        if (word := _word(hint)) is not None:
            options["metavar"] = word
        section = _section(tags.of(config_type)[field.name])
        fields = outside if _is_positional(hint) else sections.setdefault(section, [])
        extended = Annotated[hint, tyro.conf.arg(**options)]  # type: ignore[valid-type]
        fields.append((field.name, extended, dataclasses.field(default=field.default)))
    if len(sections) == 1:
        return _made(config_type.__name__, [*outside, *sections.popitem()[1]])
    boxes = [
        (title, Annotated[_made(title, fields), tyro.conf.arg(help=sentence)])
        for (title, sentence), fields in sections.items()
    ]
    return _made(config_type.__name__, [*outside, *boxes])


def _made(name: str, fields: list[Any]) -> type:
    return dataclasses.make_dataclass(name, fields, kw_only=True)


def _section(own: frozenset[Any]) -> tuple[str, str]:
    """Title and sentence of the section of a setting with these tags."""
    for tag in own:
        if isinstance(tag, Of):
            return tag.method, f"For --method {tag.method} alone."
    return next(section for tag, section in _SECTIONS.items() if tag in own)


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
