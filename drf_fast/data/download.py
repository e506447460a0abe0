"""Published files: downloading them atomically, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import sys
import tempfile
import urllib.error
from collections.abc import Callable, Iterable
from pathlib import Path

from drf_fast.errors import InputError
from drf_fast.runtime.files import explained
from drf_fast.runtime.text import message_of

# How the user allows a download, for messages about missing files.
ALLOW = "run without --dry-run or --plan (in Python, with download=True) to download"


def fetch(
    what: str,
    data_dir: Path,
    target: Path,
    names: Iterable[str],
    get: Callable[[str], Path],
) -> None:
    """Let ``get`` download files into a temporary folder, then move them to ``target``.

    So an interrupted download leaves no incomplete files, and two processes do not write to the
    same ones.

    Args:
        what: the data set, for messages.
        data_dir: the user's folder; the temporary folder is created in it.
        target: the final folder; created if it does not exist.
        names: the files.
        get: downloads into the given folder, with torchvision, verifies the checksums and returns
            the folder that contains the files.

    Raises:
        InputError: no torchvision, no network, wrong checksums, or a folder that cannot be written.
        OSError: the disk is full.
    """
    ask = f"put the {what} files into a folder and name it with --data-dir"
    choose = "choose another --data-dir"
    with explained(f"store {what} in", data_dir, "a writable folder", choose):
        target.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".download.", dir=data_dir)
    try:
        # torchvision may print, but standard output is for results.
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
        reason = message_of(error) or type(error).__name__
        raise InputError(
            f"cannot download {what}: expected its servers to answer, got '{reason}'; "
            f"connect to the network, or {ask}, or use --data mnist-mini, which needs no download"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch_url(what: str, data_dir: Path, target: Path, url: str, md5: str) -> None:
    """As ``fetch``, for the one file at ``url``, under its own name."""
    name = url.rpartition("/")[2]

    def get(scratch: str) -> Path:
        from torchvision.datasets.utils import download_url

        download_url(url, scratch, name, md5=md5)
        return Path(scratch)

    fetch(what, data_dir, target, [name], get)


def refuse_other_file(
    content: bytes, md5: str, path: Path, wrong: str = "is damaged or another file"
) -> None:
    """Refuse a file that is not, byte for byte, the published one.

    Args:
        content: its bytes.
        md5: the published MD5.
        path: where it lies, for the message.
        wrong: what is wrong with another one, for the message.

    Raises:
        InputError: it has another MD5.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path} {wrong}: expected the MD5 {md5}, got {found}; delete it and fetch it again"
        )
