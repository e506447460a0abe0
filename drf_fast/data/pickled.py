"""The Python version of CIFAR, the one that torchvision downloads: pickled, and read all the same.

To read a pickle is to run what is in it. So a file is read only if it is, byte for byte, the
published one, by the MD5 that its authors give; and even then by a reader that knows NumPy's arrays
by name, makes inert stand-ins of them, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from drf_fast.data.download import refuse_other_file
from drf_fast.errors import InputError


class _Kind:
    """Stands for ``numpy.dtype``: keeps what it is given."""

    def __init__(self, *arguments: Any) -> None:
        self.name = arguments[0] if arguments else None

    def __setstate__(self, state: Any) -> None:
        """Byte order, which a byte has none of."""


class _Array:
    """Stands for ``numpy.ndarray``: keeps the state that the file gives it."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


_STANDS_FOR = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS_FOR:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _STANDS_FOR[module, name]


def read(content: bytes, md5: str, path: Path, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of one file.

    Args:
        content: its bytes.
        md5: the published MD5.
        path: where it lies, for messages.
        labels: the key of the labels, ``b"labels"`` or ``b"fine_labels"``.

    Raises:
        InputError: other bytes than the published ones.
    """
    refuse_other_file(content, md5, path, "is pickled, and read only if it is the published file")
    try:
        batch = _Reader(io.BytesIO(content), encoding="bytes").load()
        _, shape, kind, fortran, pixels = batch[b"data"].state
        assert kind.name == b"u1"
        images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
        classes = np.array(batch[labels], dtype=np.uint8)
        assert images.shape == (len(classes), 3 * 32 * 32)
    except Exception as error:
        # By its checksum it cannot be; should MD5 be broken, this is no code.
        raise InputError(
            f"cannot read {path}: expected the published pickle, got {type(error).__name__}; use "
            "the binary version"
        ) from error
    return images.reshape(-1, 3, 32, 32), classes
