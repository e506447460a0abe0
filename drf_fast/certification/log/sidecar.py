"""The configuration beside a log (its sidecar), and errors of its files."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from drf_fast.config.training import trained
from drf_fast.errors import InputError
from drf_fast.runtime.files import explained, read_file, read_json

# Keys that may differ when a log is resumed: the environment of the first run, and of later ones.
ENVIRONMENT, ENVIRONMENTS_RESUMED = "environment", "environments_resumed"
_OTHER_FORMATS = {  # by the bytes that they begin with
    b"\x1f\x8b": "a gzip file; unpack it",
    b"PK\x03\x04": "a zip file; unpack it",
    b"BZh": "a bzip2 file; unpack it",
    b"\xfd7zXZ": "an xz file; unpack it",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
MOST_LOG = 2**28  # bytes: a log of three million images
_CHECK = "check the path and its permissions"
_CERTIFICATES = "certificates"  # the log with which an attack was compared last
_NOT_COMPARED = {ENVIRONMENT, ENVIRONMENTS_RESUMED, _CERTIFICATES}


def bare_name(path: Path) -> str:
    """The file name without its suffix; ``.50`` in ``noise_0.50`` is no suffix."""
    return re.sub(r"\.[A-Za-z]\w*$", "", path.name)


def sidecar(path: str | Path) -> Path:
    """The path of a log's configuration: ``certify.tsv`` -> ``certify.json``."""
    path = Path(path)
    return path.with_name(bare_name(path) + ".json")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` as JSON returns it (tuples become lists); ValueError for NaN, which JSON lacks."""
    return json.loads(json.dumps(config, allow_nan=False))


def read_config(path: Path) -> dict[str, Any]:
    config = read_json(sidecar(path))
    if not isinstance(config, dict):
        raise InputError(
            f"{sidecar(path)} is not the configuration of {path.name}: expected a JSON object, got "
            f"a {type(config).__name__}; restore or remove it"
        )
    return config


def only_trained(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without training settings that do not affect the network (old logs have some)."""
    training = config.get("training")
    return {**config, "training": trained(training)} if isinstance(training, dict) else config


def refuse_other_config(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise InputError, naming the keys, if a log to be resumed has another configuration."""
    old, new = only_trained(old), only_trained(new)
    missing = object()
    keys = sorted((old.keys() | new.keys()) - _NOT_COMPARED)
    different = [key for key in keys if old.get(key, missing) != new.get(key, missing)]
    if different:
        pairs = ", ".join(
            f"{key} ({json.dumps(old[key]) if key in old else 'absent'} there, "
            f"{json.dumps(new[key]) if key in new else 'absent'} now)"
            for key in different
        )
        raise InputError(
            f"cannot resume {path}: expected the configuration that it was made with, got another "
            f"{pairs}; use the same settings, or choose another --out"
        )


def with_environment(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``old`` with the environment of ``new`` added, unless it equals that of the last run.

    The first run's stays under ``environment``; those of resumed runs follow in the list
    ``environments_resumed``. The certificates of an attack are those of ``new``.
    """
    if _CERTIFICATES in new:
        old = {**old, _CERTIFICATES: new[_CERTIFICATES]}
    first, *later = environments(old)
    if ENVIRONMENT not in new or new[ENVIRONMENT] == [first, *later][-1]:
        return old
    return {**old, ENVIRONMENTS_RESUMED: [*later, new[ENVIRONMENT]]}


def environments(config: dict[str, Any]) -> list[Any]:
    """The environment of the run that began a log, None if unknown, and of each that resumed it."""
    later = config.get(ENVIRONMENTS_RESUMED)
    return [config.get(ENVIRONMENT), *(later if isinstance(later, list) else [])]


def read_bytes(path: Path) -> bytes:
    return read_file(path, "a readable file", _CHECK, MOST_LOG)


def writing(path: Path) -> contextlib.AbstractContextManager[None]:
    """Report an OSError inside the block as an InputError, unless the disk is full or broken."""
    return explained("write", path, "a writable file in an existing folder", _CHECK)


def decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")  # some editors on Windows add a byte order mark
    except UnicodeDecodeError as error:
        known = (said for start, said in _OTHER_FORMATS.items() if content.startswith(start))
        said = next(known, "binary data; check the path")
        raise InputError(f"{path} is no log: expected UTF-8 text, got {said}") from error
