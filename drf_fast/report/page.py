"""A report as one self-contained HTML page, which needs no network and no installation.

plotly.js draws the charts: its Python package contains the library as one file, it takes plain
data, draws SVG, which prints well, and does not need eval, so that the page's content security
policy can forbid it. Jinja2 fills the template and escapes all values.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drf_fast.errors import InputError
from drf_fast.report import charts
from drf_fast.report.attacks import UNDER_ATTACK, AttackCurve, attack_cells
from drf_fast.report.summary import GroupSummary, Summary
from drf_fast.report.tables import best_cells, caption, cells, incompleteness
from drf_fast.runtime.files import write_atomic
from drf_fast.runtime.text import images_of, number_of, rounded_down
from drf_fast.version import __version__

NEEDS = ("jinja2", "plotly")
_IMAGES = {"test": "test image", "train": "training image"}  # by split


@dataclass(frozen=True)
class Picture:
    """One test image of the gallery.

    Attributes:
        idx: its position in the data set.
        label, predict: names of its true and its certified class.
        radius: certified L2 radius.
        state: "right", "wrong", "abstains" or "skipped" (wrong, and not certified).
        attacked: result of an attack on it; empty if it was not attacked.
        changed: whether the attack changed its class.
        sources: data: URIs of the image and of a noisy copy.
    """

    idx: int
    label: str
    predict: str
    radius: float
    state: str
    attacked: str
    changed: bool
    sources: tuple[str, ...]


def missing() -> list[str]:
    """The packages that a page needs and that are not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def write(
    path: Path,
    summary: Summary,
    *,
    attacks: Sequence[AttackCurve] = (),
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    gallery: Sequence[Picture] = (),
    gallery_of: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: an .html file.
        summary: the report.
        attacks: curves of accuracy under attack.
        training: the epochs of training runs, by name.
        gallery: test images, and ``gallery_of`` whose certificates they show.
        warnings: sentences for the reader.

    Raises:
        InputError: a package is missing, or the folder cannot be written.
        OSError: the disk is full.
    """
    if missing():
        raise InputError(
            f"a page needs {' and '.join(NEEDS)}: expected both, got no {', '.join(missing())}; "
            f"pip install {' '.join(missing())}"
        )
    import jinja2
    from plotly.offline import get_plotlyjs

    if summary.missing:
        warnings = [*warnings, f"incomplete: {incompleteness(summary)}"]
    shown = [charts.certified(summary, attacks), charts.acr(summary), charts.p_lower(summary)]
    tables = _tables(summary, attacks)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["rounded_down"] = rounded_down
    text = environment.get_template("page.html.j2").render(
        title=_title(summary),
        figures=figures(summary, attacks),
        words=[words(entry, summary, attacks) for entry in summary.groups],
        warnings=warnings,
        charts=[chart for chart in shown if chart is not None],
        training=charts.training(training or {}),
        tables=tables,
        bold=_meaning_of_bold(summary, tables),
        caption=caption(summary) + (f" {UNDER_ATTACK}" if attacks else ""),
        gallery=gallery,
        attacked=any(one.attacked for one in gallery),
        skipped=any(one.state == "skipped" for one in gallery),
        gallery_of=gallery_of,
        settings=[(entry.group.label, _settings(entry)) for entry in summary.groups],
        plotly=get_plotlyjs(),
        version=__version__,
    )
    write_atomic(path, text.encode("utf-8", "backslashreplace"))  # names of files may be no UTF-8


def figures(summary: Summary, attacks: Sequence[AttackCurve]) -> list[tuple[str, str]]:
    """The key figures of a report on one group as (number, caption); none for several groups."""
    if len(summary.groups) != 1:
        return []
    (entry,) = summary.groups
    radius = _telling_radius(entry, summary)
    share = entry.certified[summary.radii.index(radius)]
    found = [
        (f"{entry.acr_mean:.3f}", "average certified radius"),
        (f"{share:.1f} %", f"certified right within {radius:g}" if radius else "certified right"),
    ]
    if attacks:
        (attack,) = attacks
        few = attack.images < summary.images
        of = f", of {number_of(attack.images, 'image')}" if few else ""
        said = f"right under attack within {attack.epsilon[-1]:g}{of}"
        found.append((f"{attack.correct[-1]:.1f} %", said))
    if entry.abstained is not None:
        found.append((f"{entry.abstained:.1f} %", "abstentions"))
    return found


def words(entry: GroupSummary, summary: Summary, attacks: Sequence[AttackCurve]) -> str:
    """A group's results, in sentences."""
    radius = _telling_radius(entry, summary)
    at = summary.radii.index(radius)
    data, split = summary.setting("data"), summary.setting("split")
    images = images_of(data, summary.images, _IMAGES.get(str(split), "image"))
    seeds = f" and {len(entry.acr)} training seeds" if len(entry.acr) > 1 else ""
    share = f"{entry.certified[at]:.1f} %"
    kept = (
        "keep their right class, provably, however their pixels are moved by less than "
        f"{radius:g} (L2, pixels from 0 to 1)"
    )
    said = [
        f"{entry.group.label}: over {images}{seeds} the average certified radius is "
        f"{entry.acr_mean:.3f}.",
        f"{share} of the images {kept if radius else 'are certified right'}.",
    ]
    if entry.abstained is not None:
        said.append(f"The classifier abstains on {entry.abstained:.1f} %.")
    attacked = next((one for one in attacks if one.belongs_to(entry.group)), None)
    if attacked is not None:
        said.append(
            f"Within {attacked.epsilon[-1]:g} an attack on {number_of(attacked.images, 'image')} "
            f"left {attacked.correct[-1]:.1f} % right; {attacked.certified[-1]:.1f} % of these "
            "images are certified there."
        )
    return " ".join(said)


def _telling_radius(entry: GroupSummary, summary: Summary) -> float:
    """The largest radius of the report at which half of the images are still certified."""
    half = [r for r, share in zip(summary.radii, entry.certified, strict=True) if share >= 50]
    return max(half, default=summary.radii[0])


def _tables(summary: Summary, attacks: Sequence[AttackCurve]) -> list[dict[str, Any]]:
    header, body = cells(summary, envelope=len(summary.groups) > 1)
    bold = best_cells(summary, (header, body))
    rows = [[(cell, (i, j) in bold) for j, cell in enumerate(row)] for i, row in enumerate(body)]
    found = [{"header": header, "rows": rows}]
    if attacks:
        header, body = attack_cells(attacks)
        found.append({"header": header, "rows": [[(cell, False) for cell in row] for row in body]})
    return found


def _meaning_of_bold(summary: Summary, tables: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the cells in bold, if there are any."""
    if not any(best for row in tables[0]["rows"] for _, best in row):
        return ""
    sigmas = {entry.group.sigma for entry in summary.groups}
    several = 1 < len(sigmas) < len(summary.groups)
    return "Bold: the best of a column" + (" at its sigma." if several else ".")


def _settings(entry: GroupSummary) -> list[tuple[str, str]]:
    """Settings of certification, training and environment of a group's first log, flat."""
    logs = entry.group.logs
    key = "log" if len(logs) == 1 else f"log, the first of {len(logs)}"
    flat: list[tuple[str, str]] = [(key, logs[0].path.name)]

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            else:
                flat.append((prefix + key, "-" if value is None else str(value)))

    add("", logs[0].config or {})
    return flat


def _title(summary: Summary) -> str:
    groups = [entry.group for entry in summary.groups]
    if len(groups) > 1 and len({group.name for group in groups}) == 1:
        return f"{groups[0].name}, σ = {', '.join(group.sigma_text for group in groups)}"
    names = [group.label for group in groups]
    shared = ""
    if len({group.sigma for group in groups}) == 1:  # then only in the title
        names = [group.name for group in groups]
        shared = groups[0].label.removeprefix(names[0])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + shared
