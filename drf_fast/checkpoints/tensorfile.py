"""Files of ``torch.save``, read without running code that they may hold."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from drf_fast.errors import InputError


def read_bytes(path: Path) -> bytes:
    """The bytes of a checkpoint.

    Raises:
        InputError: no such file, or not readable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the checkpoint {path}: expected a file of torch.save, got "
            f"{(error.strerror or 'an error').lower()}; check the path"
        ) from error


def read(path: Path) -> tuple[Any, str]:
    """What the file holds, its tensors on the CPU, and the SHA-256 of its bytes.

    Raises:
        InputError: no such file, truncated, of another format, or with more in it than tensors
            and plain values.
    """
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols: what matters is an error
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"cannot load {path}: expected tensors and plain values, got a file that holds code or "
            f"other objects{f' ({found[1]})' if found else ''}, or a damaged one; if you trust its "
            'author, convert it where that code is installed: python -c "import torch; c = '
            f"torch.load('{path.name}', weights_only=False); torch.save(c['state_dict'] if "
            "isinstance(c, dict) else c.state_dict(), 'weights.pt')\""
        ) from error
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise InputError(
            f"cannot load {path} ({len(data)} bytes): expected a file of torch.save, got a "
            "truncated file or another format; copy it again or pass another file"
        ) from error
    return content, hashlib.sha256(data).hexdigest()
