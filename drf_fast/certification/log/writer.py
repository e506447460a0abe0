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
    plain,
    read_bytes,
    read_config,
    refuse_other_config,
    sidecar,
    with_environment,
    writing,
)
from drf_fast.errors import InputError
from drf_fast.runtime.files import (
    lock,
    refuse_irregular,
    refuse_missing_folder,
    unlock,
    write_json,
)

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


def refuse_other_files(path: Path) -> None:
    """Protect files that are not logs from being replaced, after a typo in --out for example.

    Raises:
        InputError: at the path of the log or of its configuration there is another kind of file.
    """
    refuse_irregular(path)
    if path.exists():
        with writing(path), path.open("rb") as file:
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


def check_path(path: Path) -> None:
    """Refuse a path where no log can be written.

    Raises:
        InputError: the path is that of its own sidecar, or its folder does not exist.
    """
    if path == sidecar(path):
        raise InputError(
            f"{path} would be its own configuration: expected a log name that does not end in "
            ".json; call it .tsv"
        )
    refuse_missing_folder(path)


def refuse_existing(path: Path) -> None:
    """Refuse to begin a log where there is one.

    Raises:
        InputError: the log, its sidecar or a part of it exists.
    """
    for existing in (path, sidecar(path), *parts_of(path)):
        if existing.exists():
            raise InputError(
                f"{existing} exists: expected a new file; continue it with --resume, replace it "
                "with --force, or choose another --out"
            )


class CertificationLog:
    """A log open for writing. Use it as a context manager, or call ``close``.

    Attributes:
        path: the log.
        done: indices of the images that it contains.
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
            InputError: the log or its sidecar exists, the folder cannot be written, or another
                process is writing the log.
            OSError: the disk is full.
        """
        path = Path(path)
        check_path(path)
        if not force:
            refuse_existing(path)
        refuse_other_files(path)
        config = plain(config)
        guard = lock(path)  # before a log that is being written is removed
        try:
            if not force:
                refuse_existing(path)  # once more: another process may have begun it meanwhile
            # The old log is removed before the new sidecar is written, so that an interruption
            # never leaves rows beside the configuration of another run.
            with writing(path):
                for old in (path, *parts_of(path)):
                    old.unlink(missing_ok=True)
            write_json(sidecar(path), config)
            return cls._open(path, set(), guard)
        except BaseException:
            unlock(guard)
            raise

    @classmethod
    def resume(cls, path: str | Path, config: dict[str, Any]) -> Self:
        """Continue a log, or begin it if neither log nor sidecar exists.

        An incomplete last line, from an interruption while writing, is dropped.

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
        log = cls._open(path, done=set())  # locks it before it is read
        try:
            if parts_of(path):  # left by an interrupted run of several processes
                collect(path)
                log._release()
                log = cls._open(path, done=set())
            if begun:
                log._drop_incomplete_line()
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
        """The part of the log ``path`` that process ``rank`` of several writes; see ``parts.py``.

        ``done`` are the images that the log contains; ``guard``, the log itself, stays locked as
        long as this part is open.
        """
        log = cls._open(part_path(Path(path), rank), set(done))
        log._guard = guard
        return log

    def _drop_incomplete_line(self) -> None:
        complete, done = self._complete_lines(read_bytes(self.path))
        self.done.update(done)
        with writing(self.path):
            self._file.truncate(len(complete))
            self._file.seek(0, os.SEEK_END)
        if not complete:
            self._write("\t".join(self.columns))

    def _complete_lines(self, content: bytes) -> tuple[bytes, set[int]]:
        """The complete lines of a log's content, and the indices of the images in them."""
        complete = content[: content.rfind(b"\n") + 1]
        if not complete:
            return complete, set()
        parsed = parse_rows(self.path, decode(self.path, complete))
        if parsed.columns != COLUMNS:
            raise InputError(
                f"cannot resume {self.path}: expected the columns {' '.join(COLUMNS)}, got "
                f"{' '.join(parsed.columns)}; choose another --out"
            )
        return complete, {row.idx for row in parsed.rows}

    @classmethod
    def _open(cls, path: Path, done: set[int], guard: FileLock | None = None) -> Self:
        """The log open for appending, locked, by ``guard`` if that is its lock already."""
        with writing(path):
            log = cls(path, FileIO(path, "ab"), done)
        try:
            log._lock = guard or lock(path)
        except InputError:
            log._file.close()
            raise
        if log._file.tell() == 0:
            log._write("\t".join(cls.columns))
        return log

    def append(self, row: Row) -> None:
        """Write one row; the operating system has it when this returns.

        Raises:
            ValueError: the image is in the log already, or a number is out of range.
            OSError: the disk is full; the log still ends with a complete line.
        """
        line = format_row(row)
        if row.idx in self.done:
            raise ValueError(f"image {row.idx} is in {self.path} already")
        self._write(line)
        self.done.add(row.idx)

    def _write(self, line: str) -> None:
        start, content = self._file.tell(), line.encode() + b"\n"
        try:
            while content:  # an unbuffered write to a nearly full disk may be partial
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
