"""The IDX container of MNIST: a big-endian header, then bytes; often inside gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from drf_fast.errors import InputError
from drf_fast.runtime.files import read_file

_UNSIGNED_BYTE = 0x08


def read_bytes(path: Path) -> bytes:
    """The content of a data file.

    Raises:
        InputError: it cannot be read.
    """
    return read_file(path, "a readable data file", "check its permissions")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read a file of unsigned bytes, unpacked or gzip (by its ``.gz`` suffix).

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
    extent as a big-endian uint32.

    Args:
        path: the file.
        dimensions: how many dimensions it must have (3 for images, 1 for labels).

    Returns:
        A uint8 array, writable.

    Raises:
        InputError: the file cannot be read, is no IDX file, is truncated or too long.
    """
    repair = "delete it and fetch it again"
    packed = read_bytes(path)
    try:
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged: expected a complete gzip file, got one that does not unpack "
            f"({error}); {repair}"
        ) from error

    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise InputError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: expected it to begin "
            f"with 0000{_UNSIGNED_BYTE:02x}{dimensions:02x}, got "
            f"{content[:4].hex() or 'an empty file'}; {repair}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected, got = math.prod(shape), len(content) - header
    if got != expected:
        state = "truncated" if got < expected else "damaged"
        raise InputError(
            f"{path} is {state}: its header promises {expected} bytes of data, got {got}; {repair}"
        )
    # A copy, because torch needs writable memory.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
