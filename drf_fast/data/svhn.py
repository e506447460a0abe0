"""SVHN, cropped digits (Netzer et al. 2011): the published .mat files, through SciPy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from drf_fast.data.download import ALLOW, fetch_url, refuse_other_file
from drf_fast.data.folders import refuse_class_folders
from drf_fast.data.idx import read_bytes
from drf_fast.data.mnist import Arrays
from drf_fast.errors import InputError

_SITE = "http://ufldl.stanford.edu/housenumbers"
# As torchvision has them.
MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
}


def read_svhn(split: str, data_dir: Path, download: bool) -> Arrays:
    """Read one split, from ``data_dir`` or ``data_dir/svhn``.

    Args:
        split: "train" (73,257 images) or "test" (26,032).
        data_dir: where to look.
        download: fetch a missing file into ``data_dir/svhn``.

    Returns:
        images (N, 3, 32, 32) uint8 and labels (N,) uint8, of which the file's 10 is the digit 0.

    Raises:
        InputError: a file is missing or not the published one, or cannot be fetched.
        OSError: the disk is full.
    """
    name = f"{split}_32x32.mat"
    places = (data_dir, data_dir / "svhn", data_dir / "SVHN")
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        refuse_class_folders("SVHN", data_dir)
        if not download:
            raise InputError(
                f"the {split} file of SVHN is missing: expected {name} in {data_dir}; fetch it "
                f"from {_SITE}, or name its folder with --data-dir, or {ALLOW}"
            )
        path = data_dir / "svhn" / name
        fetch_url("SVHN", data_dir, path.parent, f"{_SITE}/{name}", MD5[split])
    content = read_bytes(path)
    refuse_other_file(content, MD5[split], path)
    return _arrays(content, path)


def _arrays(content: bytes, path: Path) -> Arrays:
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        images, labels = found["X"], found["y"].ravel()
        assert images.dtype == np.uint8 and images.shape == (32, 32, 3, len(labels))
        assert labels.min() >= 1 and labels.max() <= 10
    except Exception as error:  # by its checksum it cannot be
        raise InputError(
            f"cannot read {path}: expected images X (32, 32, 3, N) and labels y from 1 to 10, got "
            f"{type(error).__name__}; fetch it again"
        ) from error
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), (labels % 10).astype(np.uint8)
