"""Atomic writes, locks and safe reads of files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from drf_fast.errors import InputError

if TYPE_CHECKING:
    from filelock import FileLock

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_FOLDER_LOCK = ".lock"
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}  # fmt: skip
MOST_TEXT = 2**24  # bytes of a JSON file at most; ours have some thousands
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # full or broken: no fault of the input
_FOLDER_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def reason(error: OSError) -> str:
    """Why the system refused, in small letters: "no such file or directory"."""
    return (error.strerror or "an error").lower()


@contextlib.contextmanager
def explained(action: str, path: str | Path, expected: str, remedy: str) -> Iterator[None]:
    """Report an OSError inside the block in one sentence, with its reason as what came.

    A full or broken disk is no bad input: its OSError is raised as it is, with the path.

    Args:
        action: what fails, as a verb: "read".
        path: of the file or folder.
        expected: what should be there: "a readable file".
        remedy: what the user can do: "check its permissions".

    Raises:
        InputError: any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            error.filename = error.filename or str(path)  # a read of an open file does not name it
            raise
        raise InputError(
            f"cannot {action} {path}: expected {expected}, got {reason(error)}; {remedy}"
        ) from error


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that replaces ``path`` on success only.

    The data is flushed to the disk before the rename, so a crash leaves the old file or the new
    one, never a part. On any error the temporary file is removed and ``path`` is untouched.

    Raises:
        InputError: the folder does not exist or is not writable, or ``path`` is no regular file.
        OSError: the write itself failed (a full disk, for example).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:  # not mkstemp, whose files only their owner may read; open() too uses 0o666 & ~umask
        descriptor = os.open(temporary, _NEW_FILE, 0o666)
    except OSError as error:
        if error.errno not in _FOLDER_ERRORS:
            raise
        raise InputError(
            f"cannot write {path}: expected an existing, writable folder, got "
            f"{reason(error)}; create the folder or choose another one"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        refuse_irregular(path)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def refuse_irregular(path: Path) -> None:
    """Refuse to replace a folder, a device or a pipe: root could replace /dev/null by a file.

    Raises:
        InputError: there is something other than a regular file, or the link /dev/stdout to one.
    """
    if path.exists() and (not is_regular(path) or path.absolute().parent == Path("/dev")):
        kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "something else")
        raise InputError(
            f"cannot write {path}: expected a file or nothing there, got {kind}; choose another "
            "name"
        )


def refuse_missing_folder(path: Path) -> None:
    """Refuse a path whose folder does not exist, before what is to be written there is computed.

    Raises:
        InputError: it does not.
    """
    if not path.parent.is_dir():
        raise InputError(
            f"cannot write {path}: expected an existing, writable folder, got none at "
            f"{path.parent}; create the folder or choose another one"
        )


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` (bytes, or text as UTF-8) atomically; raises as ``atomic_file``."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """The content of a regular file, of ``most`` bytes at most.

    Others are refused: reading a pipe may block for ever, and devices such as /dev/zero never end.

    Raises:
        InputError: neither a regular file nor a folder, or too long.
        OSError: missing, a folder, or not readable.
    """
    with open(path, "rb", opener=_open_without_blocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise InputError(
                f"cannot read {path}: expected a regular file, got {kind}; write its content to a "
                "file first ('drf-fast report -' reads a log from standard input)"
            )
        if most is not None and status.st_size > most:
            raise InputError(
                f"cannot read {path}: expected at most {most:,} bytes of text, got "
                f"{status.st_size:,}; check the path"
            )
        return file.read()


def first_line(path: Path, most: int) -> bytes:
    """Up to ``most`` bytes of the first line; b"" if the file is unreadable or not regular."""
    if not is_regular(path):
        return b""
    try:
        with path.open("rb") as file:
            return file.readline(most)
    except OSError:
        return b""


def is_regular(path: Path) -> bool:
    """Whether ``path`` is a regular file: opening one never waits for another process."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _open_without_blocking(path: str, flags: int) -> int:
    """An ``opener`` for ``open`` that does not wait for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_file(path: str | Path, expected: str, remedy: str, most: int | None = None) -> bytes:
    """The content of a regular file, of ``most`` bytes at most.

    Args:
        path: the file.
        expected: what it should be, for the message: "a readable data file".
        remedy: what to do if it cannot be read: "check its permissions".
        most: the longest that is read.

    Raises:
        InputError: missing, not readable, not regular or too long.
        OSError: the disk is broken.
    """
    with explained("read", path, expected, remedy):
        return read_regular(path, most)


def read_parsed(
    path: str | Path, parse: Callable[[str], Any], kind: str, check: str, remedy: str, most: int
) -> Any:
    """What ``parse`` makes of the text in a file, of ``most`` bytes at most.

    Args:
        path: the file, in UTF-8.
        parse: raises ValueError for text of another kind.
        kind: the format, for messages: "JSON".
        check: what to do if the file cannot be read.
        remedy: what to do if it has another format.
        most: the longest that is read.

    Raises:
        InputError: as ``read_file``, or of another format.
    """
    content = read_file(path, f"a {kind} file", check, most)
    try:
        return parse(content.decode("utf-8-sig"))
    except ValueError as error:
        got = f"something else ({error})"
        raise InputError(f"cannot read {path}: expected {kind}, got {got}; {remedy}") from error
    except RecursionError as error:
        got = "brackets nested too deep"
        raise InputError(f"cannot read {path}: expected {kind}, got {got}; {remedy}") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    remedy = "restore the file or write it anew"
    return read_parsed(path, json.loads, "JSON", "check the path", remedy, MOST_TEXT)


def absolute(path: Path) -> str:
    """The path as it is recorded, to be found from another folder; ``~`` is replaced."""
    return os.path.abspath(os.path.expanduser(path))


def lock(path: Path) -> FileLock:
    """Lock the file or folder ``path`` until ``unlock``: one writer at a time.

    The lock is the operating system's, on a hidden file in or beside ``path``: it ends with its
    process, however that ends, and a lock file left behind by a killed process locks nothing.

    Raises:
        InputError: another writer holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # imports asyncio, which would slow down every --help

    name = path / _FOLDER_LOCK if path.is_dir() else path.with_name(f".{path.name}-lock")
    # Not thread-local: the thread that closes a log may not be the one that opened it.
    guard = FileLock(name, timeout=0, thread_local=False)
    with explained("lock", path, "a folder that can be written", "choose another --out"):
        try:
            guard.acquire()
        except Timeout as error:
            raise InputError(
                f"{path} is being written by another process: expected one writer; wait for it, or "
                "choose another --out"
            ) from error
    return guard


def unlock(guard: FileLock) -> None:
    """Release what ``lock`` returned and remove its file; a second call does nothing."""
    if guard.is_locked:
        # Removed while the lock is held: filelock discards a lock whose file is gone. Windows
        # cannot remove an open file; there filelock removes it on release.
        with contextlib.suppress(OSError):
            os.unlink(guard.lock_file)
        guard.release()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` locked, see ``lock``."""
    if not os.access(folder, os.W_OK | os.X_OK):
        yield  # not writable: new_folder raises the error
        return
    guard = lock(folder)
    try:
        yield
    finally:
        unlock(guard)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock that a killed process may have left."""
    return all(entry.name == _FOLDER_LOCK for entry in folder.iterdir())


def new_folder(path: str | Path, *, force: bool = False, resume: bool = False) -> Path:
    """Create an output folder; one that already holds files needs ``force`` or ``resume``.

    Nothing is deleted here: with ``force`` the caller replaces the files that it writes.

    Raises:
        InputError: the folder is in use, not a folder, or cannot be created.
    """
    path = Path(path)
    action, expected, remedy = "use as output folder", "a writable folder", "choose another --out"
    with explained(action, path, expected, remedy):
        path.mkdir(parents=True, exist_ok=True)
        in_use = not is_empty(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot {action} {path}: expected {expected}, got one without write permission; "
            f"{remedy}"
        )
    if in_use and not (force or resume):
        raise InputError(
            f"{path} already holds files: expected a new or empty output folder; continue that run "
            "with --resume, replace it with --force, or choose another --out"
        )
    return path
