"""Fetching published files: whole or not at all, and one sentence if it fails."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import sys
import tempfile
import urllib.error
from collections.abc import Callable, Iterable
from pathlib import Path

from drf_fast.errors import InputError


def fetch(
    what: str,
    data_dir: Path,
    target: Path,
    names: Iterable[str],
    get: Callable[[str], Path],
) -> None:
    """Let ``get`` fetch files into a scratch folder, then move them to ``target``.

    So an interrupted download leaves nothing that looks like data, and two processes cannot spoil
    each other's files.

    Args:
        what: the data set, for messages.
        data_dir: the user's folder; the scratch folder is made in it.
        target: where the files go; made if it is missing.
        names: the files.
        get: fetches into the folder it is given, with torchvision, checks the checksums and
            returns the folder where the files are.

    Raises:
        InputError: no torchvision, no network, wrong checksums, or a folder that cannot be written.
        OSError: the disk is full.
    """
    ask = f"put the {what} files into a folder and name it with --data-dir"
    try:
        target.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".download.", dir=data_dir)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"cannot store {what} in {data_dir}: expected a writable folder, got "
            f"{(error.strerror or 'an error').lower()}; choose another --data-dir"
        ) from error
    try:
        # torchvision may print; standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            folder = get(scratch)
        for name in names:
            os.replace(folder / name, target / name)
    except ImportError as error:
        raise InputError(
            f"cannot download {what}: expected torchvision to be installed, got '{error}'; "
            f"run 'pip install torchvision', or {ask}"
        ) from error
    except (
        RuntimeError,
        urllib.error.URLError,
        ConnectionError,
        TimeoutError,
        http.client.HTTPException,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot download {what}: expected its servers to answer, got '{reason[:300]}'; "
            f"connect to the network, or {ask}, or use --data mnist-mini, which needs no download"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
