"""Files of ``torch.save`` and of safetensors, read without running code they may contain."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from drf_fast.checkpoints import plain_values
from drf_fast.errors import InputError
from drf_fast.runtime.files import explained, read_regular

_EXPECTED = "a file of torch.save or safetensors"


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
