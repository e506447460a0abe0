"""The attack log: one line per image and epsilon, and a sidecar with the configuration.

    idx label epsilon clean predict correct distance attack time

``clean`` and ``predict`` are PREDICT's classes of the image and of the adversarial one, -1 where it
abstains; ``correct`` is 1 where both are the label. ``distance`` (L2, in pixel units) is rounded
*up*, so that in comparison with a certified radius an image never seems nearer than it is.
``attack`` is the search that found the image, ``none`` for the clean image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any

from drf_fast.certification.log import CertificationLog, sidecar
from drf_fast.certification.log.rows import format_time, parse_time, read_integer, read_number
from drf_fast.certification.log.sidecar import decode, read_bytes, read_config
from drf_fast.errors import InputError
from drf_fast.runtime.files import first_line

COLUMNS = (
    "idx", "label", "epsilon", "clean", "predict", "correct", "distance", "attack", "time",
)  # fmt: skip
ATTACKS = ("none", "pgd", "ddn")
# By which an image may lie beyond epsilon: float32 moves it by 2^-25 sqrt(D) at most, of D pixels.
_ROUNDING = 1e-4
_TWELVE_DECIMALS, _EXACT = Decimal("1e-12"), Context(prec=400)
_HASHES = ("checkpoint_sha256", "fingerprint")


@dataclass(frozen=True)
class AttackRow:
    """The result of the attack on one image within one epsilon.

    Attributes:
        idx: position of the image in its data set.
        label: true class.
        epsilon: the bound of the attack, L2 in pixel units.
        clean: class of the clean image by PREDICT, -1 for abstention.
        predict: class of the adversarial image by PREDICT.
        distance: ||adversarial - clean||_2 in pixel units.
        attack: one of ``ATTACKS``.
        seconds: time taken.
    """

    idx: int
    label: int
    epsilon: float
    clean: int
    predict: int
    distance: float
    attack: str
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the classifier's class is the label before and after the attack."""
        return self.clean == self.label == self.predict

    @property
    def changed(self) -> bool:
        """Whether the attack reached another class than it was to lead away from.

        That is the label where the classifier abstains on the clean image: an abstention that
        becomes the label is no success.
        """
        return self.predict not in (-1, self.label if self.clean == -1 else self.clean)

    @property
    def undecided(self) -> bool:
        """Whether it abstains on at least one of both images and is wrong on none."""
        return not self.correct and {self.clean, self.predict} <= {self.label, -1}


@dataclass(frozen=True)
class Attacked:
    """An attack log as read."""

    path: Path
    config: dict[str, Any]
    rows: tuple[AttackRow, ...]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """In ascending order."""
        return tuple(sorted({row.epsilon for row in self.rows}))

    @property
    def images(self) -> tuple[int, ...]:
        """In the order of the log."""
        return tuple(dict.fromkeys(row.idx for row in self.rows))


def format_row(row: AttackRow) -> str:
    """One line of the log, without the newline."""
    distance = Decimal(row.distance).quantize(_TWELVE_DECIMALS, ROUND_CEILING, _EXACT)
    fields = (
        row.idx, row.label, repr(row.epsilon), row.clean, row.predict, int(row.correct),
        f"{distance:f}", row.attack, format_time(row.seconds),
    )  # fmt: skip
    return "\t".join(map(str, fields))


class AttackLog(CertificationLog):
    """An attack log open for writing; the lines of an image are written together."""

    columns = COLUMNS

    def add(self, rows: Sequence[AttackRow]) -> None:
        """Write the lines of one image; the operating system has them on return."""
        self._write("\n".join(map(format_row, rows)))
        self.done.add(rows[0].idx)

    def _complete_lines(self, content: bytes) -> tuple[bytes, set[int]]:
        """As in the base class; a last image with fewer lines than epsilons is dropped."""
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            return b"", set()
        rows = parse(self.path, decode(self.path, content))
        counts = Counter(row.idx for row in rows)
        if rows and counts[rows[-1].idx] < len(read_config(self.path)["epsilons"]):
            last = rows[-1].idx
            lines = content.splitlines(keepends=True)
            content = b"".join(lines[: len(lines) - counts.pop(last)])
        return content, set(counts)


def parse(path: Path, text: str) -> list[AttackRow]:
    """Checked rows of an attack log.

    Raises:
        InputError: another header, or a malformed line; names it.
    """
    lines = text.rstrip("\r\n").split("\n")
    if tuple(lines[0].rstrip("\r").split("\t")) != COLUMNS:
        raise InputError(
            f"{path} is not an attack log: expected the tab-separated header {' '.join(COLUMNS)}, "
            f"got {lines[0][:80]!r}; check the path"
        )
    rows: list[AttackRow] = []
    seen: set[tuple[int, float]] = set()
    for line_number, line in enumerate(lines[1:], start=2):
        try:
            row = _parse_row(line.rstrip("\r").split("\t"))
            if (row.idx, row.epsilon) in seen:
                raise ValueError(f"expected image {row.idx} at {row.epsilon:g} once, got it again")
        except ValueError as error:
            raise InputError(
                f"{path}: line {line_number} is malformed: {error}; restore the log or attack again"
            ) from error
        seen.add((row.idx, row.epsilon))
        rows.append(row)
    return rows


def _parse_row(fields: list[str]) -> AttackRow:
    if len(fields) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} fields, got {len(fields)}")
    named = dict(zip(COLUMNS, fields, strict=True))
    whole = {
        key: read_integer(named[key]) for key in ("idx", "label", "clean", "predict", "correct")
    }
    correct = whole.pop("correct")
    row = AttackRow(
        **whole,
        epsilon=read_number(named["epsilon"]),
        distance=read_number(named["distance"]),
        attack=named["attack"],
        seconds=parse_time(named["time"]),
    )
    if min(row.idx, row.label, row.clean + 1, row.predict + 1) < 0:
        raise ValueError(f"expected no number below 0 but for an abstention, got {fields[:5]}")
    if row.attack not in ATTACKS:
        raise ValueError(f"expected attack to be one of {', '.join(ATTACKS)}, got {row.attack!r}")
    if not 0 <= row.distance <= row.epsilon * (1 + 1e-5) + _ROUNDING < float("inf"):
        raise ValueError(
            f"expected a distance from 0 to epsilon, got {row.distance} and {row.epsilon}"
        )
    if correct != row.correct:
        raise ValueError(f"expected correct to be {int(row.correct)}, got {correct}")
    return row


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """By what two configurations are not of one network, the same images and noise level.

    Weights alone are no network: the same file can be read as another architecture, or behind
    another first layer. A log that does not record these two differs from none in them.
    """
    pairs = [(key, there.get(key), here.get(key)) for key in (*_HASHES, "sigma")]
    built = zip(("arch", "normalize"), _architecture(there), _architecture(here), strict=True)
    pairs += [(key, one, two) for key, one, two in built if one is not None and two is not None]
    return [
        f"{key} ({_shown(key, one)} there, {_shown(key, two)} here)"
        for key, one, two in pairs
        if one != two
    ]


def _architecture(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Architecture and first layer; None where they are unknown."""
    training = config.get("training")
    if not isinstance(training, dict) or not training:
        return None, None  # of ``certify_dataset``, whose arch is only the name of a class
    return config.get("arch"), training.get("normalize")


def _shown(key: str, value: Any) -> str:
    return str(value)[:12] if key in _HASHES else str(value)


def is_attack_log(path: Path) -> bool:
    """Whether a file begins with the header of an attack log; False if it is unreadable."""
    return first_line(path, 200).rstrip(b"\r\n") == "\t".join(COLUMNS).encode()


def read_attacked(path: str | Path) -> Attacked:
    """Read an attack log and its sidecar.

    Raises:
        InputError: missing, empty, malformed, incomplete, or without its sidecar.
    """
    path = Path(path)
    content = read_bytes(path)
    rows = parse(path, decode(path, content))
    if not content.endswith(b"\n"):
        raise InputError(
            f"{path}: line {len(rows) + 1} is torn: expected a line end, got the end of the file; "
            "finish the run with --resume"
        )
    if not sidecar(path).exists():
        raise InputError(
            f"{path}: expected its configuration in {sidecar(path)}, got no such file; restore it"
        )
    config = read_config(path)
    if not rows and config.get("shard") is None:  # a shard may have no image
        raise InputError(
            f"{path} holds no attack: expected at least one line below the header; attack again "
            "or leave it out"
        )
    return Attacked(path, config, tuple(rows))
