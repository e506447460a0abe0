"""Lines of the certification log: columns, formatting, parsing, valid ranges."""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from pathlib import Path

from drf_fast.errors import InputError

FIELD_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
COLUMNS = (*FIELD_COLUMNS, "count", "n", "p_lower")
PREDICT_COLUMNS = ("idx", "label", "predict", "correct")  # and "time", in published ones
# Radii and seconds beyond these limits come from damaged files, and their sums could overflow.
LARGEST_RADIUS, _LONGEST = 1e9, 1e12
_TWELVE_DECIMALS, _EXACT = Decimal("1e-12"), Context(prec=400)
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # always fits int64
_TIME = re.compile(
    r"(?:([0-9]{1,9}) days?, )?([0-9]{1,9}):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,6}))?"
)


@dataclass(frozen=True)
class Row:
    """The certificate of one image.

    Attributes:
        idx: position of the image in its data set.
        label: true class.
        predict: certified class, -1 for abstention.
        radius: certified L2 radius in pixel units; 0 for abstention.
        seconds: time taken.
        count: samples of the selected class among ``n`` (also where that ends in abstention).
        n: samples drawn for the bound; 0 where the class was skipped as wrong.
        p_lower: lower confidence bound of the probability of the selected class.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    count: int
    n: int
    p_lower: float


def format_row(row: Row) -> str:
    """One line of the log, without the newline.

    Raises:
        ValueError: a number is out of range.
    """
    problem = _problem(row)
    if problem:
        raise ValueError(f"image {row.idx}: {problem}")
    fields = (
        row.idx,
        row.label,
        row.predict,
        round_down(row.radius),
        int(row.label == row.predict),
        format_time(row.seconds),
        row.count,
        row.n,
        round_down(row.p_lower),
    )
    return "\t".join(map(str, fields))


@dataclass(frozen=True)
class Parsed:
    """A parsed log: its header, its checked rows, and warnings about corrections."""

    columns: tuple[str, ...]
    rows: list[Row]
    warnings: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether the log has our three columns; without them ``n`` is 0 in all rows."""
        return self.columns[: len(COLUMNS)] == COLUMNS

    @property
    def predictions(self) -> bool:
        """Whether this is a log of PREDICT, which certifies no radius."""
        return self.columns[: len(PREDICT_COLUMNS)] == PREDICT_COLUMNS


def is_header(line: str) -> bool:
    """Whether a line is the header of a log: of certificates or predictions, ours or published."""
    columns = tuple(line.rstrip("\r\n").split("\t"))
    return any(columns[: len(known)] == known for known in (FIELD_COLUMNS, PREDICT_COLUMNS))


def parse_rows(path: Path, text: str) -> Parsed:
    """Header and checked rows.

    Some published logs have the time in plain seconds, and some a running total in ``correct``,
    which is then recomputed from label and prediction, with a warning.

    Raises:
        InputError: an unknown header, or a malformed line, which it names.
    """
    lines = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]
    if not is_header(lines[0]):
        alike = "label" in lines[0].lower()  # a log perhaps, in another layout
        fix = "write it with these columns in this order" if alike else "check the path"
        raise InputError(
            f"{path} is not a certification log: expected the tab-separated header "
            f"{' '.join(FIELD_COLUMNS)} (or, of predictions, {' '.join(PREDICT_COLUMNS)}), got "
            f"{lines[0][:80]!r}; {fix}"
        )
    parsed = Parsed(tuple(lines[0].split("\t")), [])
    corrects: list[str] = []
    first_seen: dict[int, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        count = len(parsed.columns)
        try:
            # Some published logs have one field more than their header.
            if len(fields) not in ((count,) if parsed.ours else (count, count + 1)):
                raise ValueError(f"expected {count} fields, got {len(fields)}")
            named = dict(zip(parsed.columns, fields, strict=False))
            row = _parse_row(named, parsed.ours)
            if row.idx in first_seen:
                raise ValueError(
                    f"expected each image once, got idx {row.idx} again (first in line "
                    f"{first_seen[row.idx]})"
                )
        except ValueError as error:
            raise _malformed(path, number, str(error)) from error
        first_seen[row.idx] = number
        parsed.rows.append(row)
        corrects.append(named["correct"])
    warning = _check_correct(path, parsed, corrects)
    return parsed if warning is None else Parsed(parsed.columns, parsed.rows, (warning,))


def _malformed(path: Path, number: int, problem: str) -> InputError:
    return InputError(
        f"{path}: line {number} is malformed: {problem}; restore or correct the log, or certify "
        "again"
    )


def _check_correct(path: Path, parsed: Parsed, corrects: list[str]) -> str | None:
    """Compare the column ``correct`` with label and prediction; a warning if it has other values.

    Raises:
        InputError: it is no number, or is 0 or 1 and contradicts label and prediction.
    """
    right = [int(row.label == row.predict) for row in parsed.rows]
    other = next((i for i, text in enumerate(corrects) if text not in ("0", "1")), None)
    running = corrects == [str(total) for total in itertools.accumulate(right)]
    if not parsed.ours and (running or other is not None) and corrects != [str(r) for r in right]:
        for number, text in enumerate(corrects, start=2):
            if text not in ("True", "False"):
                try:
                    read_number(text)
                except ValueError as error:
                    raise _malformed(path, number, str(error)) from error
        got = "running totals" if running else f"{corrects[other or 0][:40]!r}"
        return (
            f"{path}: expected correct to be 0 or 1, got {got}: computed again from label and "
            "predict"
        )
    for number, (text, row, truth) in enumerate(
        zip(corrects, parsed.rows, right, strict=True), start=2
    ):
        try:
            correct = read_integer(text)
        except ValueError as error:
            raise _malformed(path, number, str(error)) from error
        if correct != truth:
            raise _malformed(
                path,
                number,
                "expected correct to be 1 exactly where predict equals label, got correct "
                f"{correct}, label {row.label}, predict {row.predict}",
            )
    return None


def _parse_row(fields: dict[str, str], ours: bool) -> Row:
    row = Row(
        idx=read_integer(fields["idx"]),
        label=read_integer(fields["label"]),
        predict=read_integer(fields["predict"]),
        radius=read_number(fields["radius"]) if "radius" in fields else 0.0,
        seconds=parse_time(fields["time"]) if "time" in fields else 0.0,
        count=read_integer(fields["count"]) if ours else 0,
        n=read_integer(fields["n"]) if ours else 0,
        p_lower=read_number(fields["p_lower"]) if ours else 0.0,
    )
    problem = _problem(row, sampled=ours)
    if problem:
        raise ValueError(problem)
    return row


def read_integer(text: str) -> int:
    """``text`` as an integer; ValueError for anything else."""
    if _INTEGER.fullmatch(text) is None:  # int() would read 1_0 as 10
        raise ValueError(f"expected an integer of at most 18 digits, got {text[:40]!r}")
    return int(text)


def read_number(text: str) -> float:
    """``text`` as a float; ValueError for anything else."""
    try:
        if "_" not in text:
            return float(text)
    except ValueError:
        pass
    comma = " with a decimal point" if "," in text else ""
    raise ValueError(f"expected a number{comma}, got {text[:40]!r}")


def _problem(row: Row, sampled: bool = True) -> str | None:
    """The first invalid value of a row, as a sentence; ``sampled``: check our columns too."""
    if row.idx < 0 or row.label < 0 or row.predict < -1:
        return (
            "expected idx and label of 0 or more and predict of -1 or more, got "
            f"{row.idx}, {row.label}, {row.predict}"
        )
    if row.predict == -1 and row.radius != 0:
        return f"expected radius 0 for an abstention (predict -1), got {row.radius}"
    if not 0 <= row.radius <= LARGEST_RADIUS:
        return f"expected a finite radius of 0 or more, got {row.radius}"
    if not 0 <= row.seconds <= _LONGEST:
        return f"expected a time of 0 s or more, got {row.seconds}"
    if sampled and not 0 <= row.count <= row.n:
        return f"expected 0 <= count <= n, got count {row.count}, n {row.n}"
    if sampled and row.n == 0 and (row.radius > 0 or row.p_lower > 0 or row.predict == row.label):
        return "expected n >= 1 but for a wrong class of which nothing is certified, got n 0"
    if sampled and not 0 <= row.p_lower <= 1:
        return f"expected p_lower between 0 and 1, got {row.p_lower}"
    return None


def round_down(value: float) -> str:
    """``value`` with 12 decimals, rounded down from the exact value of the double."""
    return f"{Decimal(value).quantize(_TWELVE_DECIMALS, ROUND_FLOOR, _EXACT):f}"


def format_time(seconds: float) -> str:
    """Seconds as h:mm:ss.ffffff."""
    microseconds = round(seconds * 1e6)
    minutes, rest = divmod(microseconds, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest // 1_000_000:02}.{rest % 1_000_000:06}"


def parse_time(text: str) -> float:
    """Seconds, from h:mm:ss.ffffff, optionally with days before it, or from plain seconds.

    Raises:
        ValueError: none of these.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        if ":" not in text:
            with contextlib.suppress(ValueError):
                return read_number(text)
        raise ValueError(f"expected a time as h:mm:ss.ffffff or in seconds, got {text[:40]!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    fraction = float(f"0.{match[5] or 0}")
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + fraction
