"""Make the embedded subset: ``python -m drf_fast.data.make_mnist_mini --data-dir FOLDER``.

The rule, in the order of MNIST: of each six training images the first, in each second six the
second (0, 7, 12, 19, 24, 31, ...: 10,000), and every 5th test image (0, 5, 10, ...: 2,000).

The training images of MNIST alternate between two groups of writers: those at even positions have
a mean of 0.123, those at odd positions 0.139. Every 6th image would be of the first group only.

The result is the same byte for byte wherever Python is linked to the original zlib: an entry of
the archive has a fixed date, order and compression level.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from drf_fast.data.mnist import read_mnist
from drf_fast.errors import InputError
from drf_fast.runtime.files import write_atomic


def indices(split: str, size: int) -> np.ndarray:
    """The positions that the rule picks among ``size`` images of a split (int64)."""
    if split == "test":
        return np.arange(0, size, 5)
    starts = np.arange(0, size, 6)
    picked = starts + np.arange(len(starts)) % 2
    return picked[picked < size]


def select(data_dir: Path) -> dict[str, np.ndarray]:
    """Apply the rule to the MNIST files in ``data_dir``; the arrays, keyed as in the archive."""
    arrays = {}
    for split in ("train", "test"):
        images, labels = read_mnist("MNIST", split, data_dir, download=False)
        picked = indices(split, len(images))
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[picked], labels[picked]
    return arrays


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an ``.npz`` archive that depend on ``arrays`` only.

    ``numpy.savez_compressed`` would do, but its compression level and the system noted in the
    entries are not ours to fix.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), (1, 0), False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.getvalue(), compresslevel=9)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write the archive; by default over the one in the package."""
    parser = argparse.ArgumentParser(description="Make the embedded MNIST subset.")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the MNIST files")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("mnist_mini.npz"))
    options = parser.parse_args(arguments)
    try:
        write_atomic(options.out, pack(select(options.data_dir)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
