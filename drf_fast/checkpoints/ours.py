"""Checkpoints: tensors and plain values only, written atomically, read without unpickling code."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drf_fast import models
from drf_fast.checkpoints import foreign, tensorfile
from drf_fast.checkpoints.checksum import content_sha256
from drf_fast.checkpoints.fitting import first_of
from drf_fast.config import run_files
from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.runtime.files import explained, write_atomic
from drf_fast.runtime.text import message_of

_FORMAT = "drf_fast checkpoint 2"  # with a checksum of all the rest
_WITHOUT_CHECKSUM = "drf_fast checkpoint 1"  # written by drf_fast 0.1
_FILE_KEYS = ("format", "checksum", "sha256")
CONTENT = "content"  # key of a foreign file's content, until the user's own network is built
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")  # of files of weights
_EXTRA_STATE = "_extra_state"  # end of the key of what ``nn.Module.get_extra_state`` returns
_KEYS = {"format", "model", "arch", "num_classes", "image_shape", "config"}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


_PARTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "arch": lambda c: isinstance(c["arch"], str),
    "num_classes": lambda c: isinstance(c["num_classes"], int) and c["num_classes"] >= 2,
    "image_shape": lambda c: (
        isinstance(c["image_shape"], list)
        and len(c["image_shape"]) == 3
        and all(isinstance(size, int) and size > 0 for size in c["image_shape"])
    ),
    "class_names": lambda c: (
        "class_names" not in c  # those of image folders, since drf_fast 0.2
        or (
            isinstance(c["class_names"], list)
            and len(c["class_names"]) == c["num_classes"]
            and all(isinstance(name, str) for name in c["class_names"])
        )
    ),
    "model": lambda c: (
        isinstance(c["model"], dict)
        and all(
            isinstance(value, torch.Tensor) or str(key).endswith(_EXTRA_STATE)
            for key, value in c["model"].items()
        )
    ),
    "config": lambda c: (
        isinstance(c["config"], dict)
        and isinstance(c["config"].get("sigma"), float)
        and 0 < c["config"]["sigma"] < math.inf
        and isinstance(c["config"].get("data"), str)
        and isinstance(c["config"].get("method_label"), str)
        and _is_json(c["config"])
    ),
}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; ``content`` needs the keys model, arch, num_classes, image_shape, config.

    Raises:
        InputError: the folder is missing or not writable.
        OSError: the write failed, a full disk for example; an older checkpoint stays whole.
    """
    # ``load`` adds these keys, which belong to the file; they are not saved again.
    content = {key: content[key] for key in content if key not in _FILE_KEYS}
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **content, "checksum": content_sha256(content)}, buffer)
    write_atomic(path, buffer.getvalue())


def locate(path: Path) -> Path:
    """The checkpoint file of ``path``, which may be a folder: of a run, or with one of weights.

    Raises:
        InputError: a folder with several files of weights.
    """
    file = path / run_files.CHECKPOINT
    if not path.is_dir() or file.exists():
        return file if path.is_dir() else path
    with explained("read", path, "a readable folder", "check its permissions"):
        found = sorted(entry for entry in path.iterdir() if _may_be_weights(entry))
    # Hugging Face writes other states beside the one file of weights: optimizer.pt, for example.
    found = [entry for entry in found if entry.suffix == _SUFFIXES[0]] or found
    if len(found) > 1:
        raise InputError(
            f"{path} holds several files of weights: expected {run_files.CHECKPOINT} or a single "
            f"one, got {first_of([entry.name for entry in found])}; name one of them"
        )
    return found[0] if found else file


def _may_be_weights(entry: Path) -> bool:
    return entry.suffix in _SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def sha256(path: Path) -> str:
    """SHA-256 of the file, which a certification log records."""
    return hashlib.sha256(tensorfile.read_bytes(path)).hexdigest()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; the hash of its bytes is added as "sha256".

    Raises:
        InputError: no such file, truncated, foreign, or containing code.
    """
    return checked(*tensorfile.read(path), path)


def load_any(path: Path, arch: str | None = None, normalize: str | None = None) -> dict[str, Any]:
    """As ``load``, but checkpoints of other repositories too: see ``foreign.convert``.

    If ``arch`` names code and the file is another program's, the network can be built only when
    the images are known: ``given.network`` does so from the entry ``CONTENT``.

    Raises:
        InputError: as both of them; ``arch`` or ``normalize`` given for a checkpoint of ours,
            except that ``arch`` must name the code of a network of the user's own again.
    """
    content, digest = tensorfile.read(path)
    code = arch is not None and names_code(arch)
    if not is_ours(content):
        if code:
            return {**pending(content, str(arch), normalize), "sha256": digest}
        return {**foreign.convert(content, path, arch, normalize), "sha256": digest}
    saved = checked(content, digest, path)
    if names_code(saved["arch"]) and normalize is None:
        _refuse_code_of_file(saved, path, arch if code else None)
        return {**saved, "arch": arch}
    if arch is not None or normalize is not None:
        raise InputError(
            f"{path} is a drf_fast checkpoint, which tells its network itself: expected no --arch "
            "and no --normalize, got one; leave the flag out"
        )
    return saved


def is_ours(content: Any) -> bool:
    """Whether a file's content is a checkpoint of ours, perhaps damaged in its mark."""
    return isinstance(content, dict) and (
        str(content.get("format")).startswith("drf_fast") or content.keys() >= _KEYS - {"format"}
    )


def pending(
    content: Any, arch: str, normalize: str | None, method_label: str = "foreign"
) -> dict[str, Any]:
    """The entries for a network of the user's own, before the images are known."""
    config = {"sigma": None, "data": None, "method_label": method_label, "normalize": normalize}
    return {"arch": arch, CONTENT: content, "config": config, "notes": [], "sha256": None}


def _refuse_code_of_file(content: dict[str, Any], path: Path, allowed: str | None) -> None:
    """Refuse to run code that only the file names: the user must name it."""
    if names_code(content["arch"]) and allowed is None:
        raise InputError(
            f"{path} is of a network of your own, which a checkpoint may not import: expected its "
            "--arch package.module:factory on the command line, got none; to run that code, repeat "
            f"--arch {content['arch']}"
        )


def checked(content: Any, digest: str, path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours as read, with its hash as ``sha256``.

    Raises:
        InputError: no such checkpoint, or a damaged one.
    """
    known = isinstance(content, dict) and content.get("format") in (_FORMAT, _WITHOUT_CHECKSUM)
    if not known or _KEYS - set(content):
        found = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content)
        raise InputError(
            f"{path} is no drf_fast checkpoint: expected the format {_FORMAT!r}, got {found}; "
            "pass a checkpoint that 'drf-fast train' wrote"
        )
    if content["format"] == _FORMAT:
        body = {key: value for key, value in content.items() if key not in _FILE_KEYS}
        if content.get("checksum") != content_sha256(body):
            raise InputError(
                f"{path} is damaged: expected the content that its checksum was made of, got "
                "another; copy it again from where it is whole, or train again"
            )
    wrong = [name for name, is_valid in _PARTS.items() if not is_valid(content)]
    if wrong:
        raise InputError(
            f"{path} is damaged: expected a drf_fast checkpoint, got one whose {', '.join(wrong)} "
            "cannot be used; train again or pass another file"
        )
    without_checksum = {key: value for key, value in content.items() if key != "checksum"}
    return {**without_checksum, "sha256": digest}


def build_model(content: dict[str, Any], path: Path, arch: str | None = None) -> nn.Module:
    """The network of a loaded checkpoint, with its weights.

    Args:
        content: the checkpoint.
        path: where it came from, for messages.
        arch: ``package.module:factory`` of a network of the user's own, **from the user**: code
            that only the checkpoint names is not run.

    Raises:
        InputError: weights and architecture do not fit, or ``arch`` is missing.
    """
    shape, num_classes = tuple(content["image_shape"]), content["num_classes"]
    if names_code(content["arch"]):
        _refuse_code_of_file(content, path, arch)
        assert arch is not None  # refused above
        # Names of weights do not show a first layer of ours: the user's network may have a "mean".
        normalize = str(content["config"].get("normalize", "none"))
        model = models.build(arch, num_classes, shape, normalize)
    else:
        model = models.build_for(content["model"], content["arch"], num_classes, shape)
    load_weights(model, content, path)
    return model


def load_weights(model: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Put the weights of a loaded checkpoint into ``model``.

    Raises:
        InputError: they do not fit.
    """
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} do not fit {content['arch']}: {message_of(error)}; pass the "
            "network that they were trained in"
        ) from error
