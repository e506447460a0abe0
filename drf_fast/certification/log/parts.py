"""Parts of a log, one for each process, and merging them into the log.

Process r of several appends to ``FILE.tsv.part-r``. ``collect`` moves the rows of all parts into
``FILE.tsv``, in index order: when a run ends, and before one is resumed, with any number of
processes.
"""

from __future__ import annotations

from pathlib import Path

from drf_fast.certification.log.rows import COLUMNS, Row, parse_rows
from drf_fast.certification.log.sidecar import decode, read_bytes
from drf_fast.runtime.files import write_atomic


def part_path(path: Path, rank: int) -> Path:
    """The file in which process ``rank`` writes its rows of the log ``path``."""
    return path.with_name(f"{path.name}.part-{rank}")


def parts_of(path: Path) -> list[Path]:
    """The parts that exist beside a log."""
    return sorted(path.parent.glob(f"{_escape_glob(path.name)}.part-[0-9]*"))


def _escape_glob(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def collect(path: Path) -> None:
    """Merge the parts into the log ``path``, in index order, and remove them.

    The log is replaced before a part is removed, so no interruption loses a row. An incomplete last
    line, as an interruption leaves it, is dropped.

    Raises:
        InputError: the log or a part is malformed.
        OSError: the disk is full; the log and its parts are as before.
    """
    parts = parts_of(path)
    lines: dict[int, str] = {}
    order: list[int] = []
    for source in [path, *parts]:
        for row, line in _complete_lines(source):
            if row.idx not in lines:
                order.append(row.idx)
            lines.setdefault(row.idx, line)
    if not lines or (not parts and order == sorted(order)):
        return
    content = ["\t".join(COLUMNS), *(lines[index] for index in sorted(lines))]
    write_atomic(path, "\n".join(content) + "\n")
    for part in parts:
        part.unlink(missing_ok=True)


def finished_images(path: Path) -> set[int]:
    """The images in the complete lines of a log and its parts; none where there is no log.

    Raises:
        InputError: the log or a part is malformed.
    """
    return {row.idx for file in [path, *parts_of(path)] for row, _ in _complete_lines(file)}


def _complete_lines(source: Path) -> list[tuple[Row, str]]:
    """The rows of a log or a part and their lines; an incomplete last line is left out."""
    if not source.exists():
        return []
    text = decode(source, read_bytes(source))
    text = text[: text.rfind("\n") + 1]
    if not text:
        return []
    return list(zip(parse_rows(source, text).rows, text.splitlines()[1:], strict=True))
