"""Writing a certification log, line by line, so that any interruption can be resumed."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from drf_fast.certification.log.parts import collect, part_path, parts_of
from drf_fast.certification.log.rows import COLUMNS, Row, format_row, parse_rows
from drf_fast.certification.log.sidecar import (
    decode,
    explained,
    plain,
    read_bytes,
    read_config,
    refuse_other_config,
    sidecar,
    with_environment,
)
from drf_fast.errors import InputError
from drf_fast.runtime.files import lock, unlock, write_json

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


def refuse_other_files(path: Path) -> None:
    """Replace logs only: a slip in --out must not cost a checkpoint or a run's settings.

    Raises:
        InputError: another file lies there, or where the configuration goes.
    """
    if path.exists() and path.is_file():
        with explained(path), path.open("rb") as file:
            start = file.read(len(COLUMNS[0]) + 1)
        if start not in (b"", COLUMNS[0].encode() + b"\t"):
            raise InputError(
                f"{path} is no certification log: expected a log to replace, got another file; "
                "choose another --out"
            )
    if sidecar(path).exists() and not {"n", "alpha"} <= set(read_config(path)):
        raise InputError(
            f"{sidecar(path)} does not belong to a log: expected the configuration of one to "
            "replace, got another file; choose another --out"
        )


class CertificationLog:
    """A log that is being written. Use as a context manager, or call ``close``.

    Attributes:
        path: the log.
        done: indices of the images that it holds.
    """

    columns: tuple[str, ...] = COLUMNS

    def __init__(self, path: Path, file: FileIO, done: set[int]) -> None:
        self.path, self.done = path, done
        self._file = file
        self._lock: FileLock | None = None
        self._guard: CertificationLog | None = None

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any], force: bool = False) -> Self:
        """Begin a log and write its sidecar.

        Args:
            path: the log; its folder must exist.
            config: whatever JSON can hold; ``report`` knows the keys ``method``, ``sigma``, ``n0``,
                ``n``, ``alpha``, ``budget``, ``data``, ``split``, ``fingerprint``, ``training``
                (the training configuration: its ``seed`` alone may differ between averaged logs).
            force: replace a log that exists.

        Raises:
            InputError: the log or its sidecar exists, or the folder cannot be written.
            OSError: the disk is full.
        """
        path = Path(path)
        if path == sidecar(path):
            raise InputError(
                f"{path} would be its own configuration: expected a log name that does not end in "
                ".json; call it .tsv"
            )
        for existing in (path, sidecar(path), *parts_of(path)):
            if not force and existing.exists():
                raise InputError(
                    f"{existing} exists: expected a new file; continue it with --resume, replace "
                    "it with --force, or choose another --out"
                )
        refuse_other_files(path)
        # The old log goes before the new sidecar comes, so that rows never stand beside the
        # configuration of another run, wherever this is interrupted.
        with explained(path):
            for old in (path, *parts_of(path)):
                old.unlink(missing_ok=True)
        write_json(sidecar(path), plain(config))
        return cls._open(path, done=set())

    @classmethod
    def resume(cls, path: str | Path, config: dict[str, Any]) -> Self:
        """Continue a log, or begin it if neither log nor sidecar exists.

        A last line without an end (the run was interrupted while writing) is dropped.

        Raises:
            InputError: the log is not ours or malformed, or was made with another configuration.
            OSError: the disk is full.
        """
        path = Path(path)
        if not path.exists() and not sidecar(path).exists():
            return cls.create(path, config)
        if not sidecar(path).exists():
            raise InputError(
                f"cannot resume {path}: expected its configuration in {sidecar(path)}, got no such "
                "file; restore it, or start again with --force"
            )
        recorded = read_config(path)
        refuse_other_config(path, recorded, plain(config))
        begun = path.exists() or bool(parts_of(path))
        log = cls._open(path, done=set())  # locked before it is read
        try:
            if parts_of(path):  # of an interrupted run of several processes
                collect(path)
                log._release()
                log = cls._open(path, done=set())
            if begun:
                log._keep_whole_lines()
            described = with_environment(recorded, plain(config))
            if described != recorded:
                write_json(sidecar(path), described)
        except BaseException:
            log._release()
            raise
        return log

    @classmethod
    def part(
        cls, path: str | Path, rank: int, done: set[int], guard: CertificationLog | None
    ) -> CertificationLog:
        """What process ``rank`` of several writes of the log ``path``; see ``parts.py``.

        ``done`` are the images that the log holds; ``guard``, the log itself, stays locked as long
        as this part is open.
        """
        log = cls._open(part_path(Path(path), rank), set(done))
        log._guard = guard
        return log

    def _keep_whole_lines(self) -> None:
        whole, done = self._whole(read_bytes(self.path))
        self.done.update(done)
        with explained(self.path):
            self._file.truncate(len(whole))
            self._file.seek(0, os.SEEK_END)
        if not whole:
            self._write("\t".join(self.columns))

    def _whole(self, content: bytes) -> tuple[bytes, set[int]]:
        """What is whole of a log's content, and the images in it."""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            return whole, set()
        parsed = parse_rows(self.path, decode(self.path, whole))
        if parsed.columns != COLUMNS:
            raise InputError(
                f"cannot resume {self.path}: expected the columns {' '.join(COLUMNS)}, got "
                f"{' '.join(parsed.columns)}; choose another --out"
            )
        return whole, {row.idx for row in parsed.rows}

    @classmethod
    def _open(cls, path: Path, done: set[int]) -> Self:
        with explained(path):
            log = cls(path, FileIO(path, "ab"), done)
        try:
            log._lock = lock(path)
        except InputError:
            log._file.close()
            raise
        if log._file.tell() == 0:
            log._write("\t".join(cls.columns))
        return log

    def append(self, row: Row) -> None:
        """Write one row; it has reached the operating system when this returns.

        Raises:
            ValueError: the image is in the log already, or a number is out of range.
            OSError: the disk is full; the log still ends with a whole line.
        """
        line = format_row(row)
        if row.idx in self.done:
            raise ValueError(f"image {row.idx} is in {self.path} already")
        self._write(line)
        self.done.add(row.idx)

    def _write(self, line: str) -> None:
        start, content = self._file.tell(), line.encode() + b"\n"
        try:
            while content:  # unbuffered: a nearly full disk may take a part only
                content = content[self._file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise

    def close(self) -> None:
        """Flush to the disk and close; a second call does nothing."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._release()
        if self._guard is not None:
            self._guard.close()

    def _release(self) -> None:
        self._file.close()
        if self._lock is not None:
            unlock(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
