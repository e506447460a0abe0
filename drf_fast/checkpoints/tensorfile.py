"""Files of ``torch.save`` and of safetensors, read without running code they may contain."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from drf_fast.checkpoints import plain_values
from drf_fast.errors import InputError
from drf_fast.runtime.files import explained, read_regular

_EXPECTED = "a file of torch.save or safetensors"
_ARRAYS = "arrays of NumPy", "save them as tensors by name, with torch.from_numpy and torch.save"
# By their first bytes: what came, and the remedy.
_OTHER_FORMATS = {
    b"version https://git-lfs": (
        "a pointer of git-lfs to the file",
        "fetch the file itself with 'git lfs pull'",
    ),
    b"<": ("a web page", "download the file itself, not the page that shows it"),
    b"GGUF": ("GGUF, the weights of a language model", "pass the network that was trained"),
    b"\x93NUMPY": _ARRAYS,
}


def read_bytes(path: Path) -> bytes:
    """The bytes of a checkpoint.

    Raises:
        InputError: no such file, or not readable.
    """
    with explained("read the checkpoint", path, _EXPECTED, "check the path"):
        return read_regular(path)


def read(path: Path) -> tuple[Any, str]:
    """The content of the file, with tensors on the CPU, and the SHA-256 of its bytes.

    Raises:
        InputError: no such file, truncated, of another format, or containing anything but tensors
            and plain values.
    """
    data = read_bytes(path)
    if _is_safetensors(data):
        return _safetensors(data, path), hashlib.sha256(data).hexdigest()
    _refuse_other_format(data, path)
    try:
        with warnings.catch_warnings(), plain_values.readable():
            warnings.simplefilter("ignore")  # about old pickle protocols
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"cannot load {path}: expected tensors and plain values, got a file that holds code or "
            f"other objects{f' ({found[1]})' if found else ''}, or a damaged one; if you trust its "
            f'author, convert it where that code is installed: python -c "{_conversion(path)}"'
        ) from error
    except Exception as error:  # whatever the reader raises for a damaged file
        raise InputError(
            f"cannot load {path} ({len(data)} bytes): expected {_EXPECTED}, got a truncated file "
            "or another format; copy it again or pass another file"
        ) from error
    return content, hashlib.sha256(data).hexdigest()


def _refuse_other_format(data: bytes, path: Path) -> None:
    """Name a format that is easily taken for a checkpoint, and what to do with it.

    Raises:
        InputError: it is one of them.
    """
    start, names = data[:64].lstrip(), _names_in_zip(data)
    found = next((value for key, value in _OTHER_FORMATS.items() if start.startswith(key)), None)
    if names and all(name.endswith(".npy") for name in names):
        found = _ARRAYS
    elif any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        weights = f"torch.jit.load({str(path)!r}, 'cpu').state_dict()"
        found = (
            "TorchScript, which is code",
            f"if you trust its author, pass what torch.save({weights}, 'weights.pt') writes",
        )
    if found is not None:
        raise InputError(f"cannot load {path}: expected {_EXPECTED}, got {found[0]}; {found[1]}")


def _names_in_zip(data: bytes) -> list[str]:
    """The names of the files in a zip archive; none if it is no whole one."""
    if not data.startswith(b"PK"):
        return []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except Exception:  # torch tells that it is damaged
        return []


def _is_safetensors(data: bytes) -> bool:
    """Whether it begins with the length of a JSON header and an opening brace."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _safetensors(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(data).items()))  # the file orders tensors by dtype
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"cannot load {path}: expected whole safetensors, got '{str(error)[:100]}'; copy it "
            "again or pass another file"
        ) from error


def _conversion(path: Path) -> str:
    """Python code that writes the weights of ``path`` to weights.pt, for use in double quotes.

    The weights are the largest dict of tensors in the file, or those of a module in it.
    """
    return (
        f"import torch; c = torch.load({_quoted(str(path))}, 'cpu', weights_only=False); "
        "f = lambda c: f(c.state_dict()) if hasattr(c, 'state_dict') else max([{k: v for k, v in "
        "c.items() if torch.is_tensor(v)}, *map(f, c.values())], key=len) if isinstance(c, dict) "
        "else {}; w = f(c); assert w, 'no weights'; torch.save(w, 'weights.pt')"
    )


def _quoted(text: str) -> str:
    """``text`` as a Python string literal, escaped for a shell's double quotes."""
    quoted = repr(text).replace("\\", "\\\\").replace('"', '\\"')
    return quoted.replace("$", "\\$").replace("`", "\\`")
