"""The charts of the page, as data for plotly.js, which draws them in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drf_fast.report import style
from drf_fast.report.attacks import AttackCurve
from drf_fast.report.compare import resample, statistics
from drf_fast.report.intervals import LEVEL
from drf_fast.report.plot import Curve, closed, curve, ecdf, nines, nines_ticks, over_images
from drf_fast.report.summary import QUANTILES, GroupSummary, Summary, certified_accuracy
from drf_fast.report.tables import probability

_MOST_STEPS = 400  # of a curve; more cannot be seen on a screen
_POINTS = 151  # of a curve at which the browser shows values on hover
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MARKS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")


@dataclass(frozen=True)
class Chart:
    """One chart for plotly.js, and the same numbers as a table, for accessibility.

    Attributes:
        key: its name in the page.
        title, about: its content in a few words and in a sentence.
        data, layout: of plotly.js.
        header, body: the table.
    """

    key: str
    title: str
    about: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    header: list[str]
    body: list[list[str]]


def certified(summary: Summary, attacks: Sequence[AttackCurve]) -> Chart:
    """Certified accuracy against radius, accuracy under attack above it."""
    data, body = [], []
    for i, entry in enumerate(summary.groups):
        r, mean, lowest, highest = _for_browser(curve(entry.group))
        if len(entry.group.logs) == 1:
            lowest, highest = over_images(mean, summary.images)
        data += _band(i, r, lowest, highest, shape="vh")
        proved = ", certified" if attacks else ""
        data.append(_line(i, entry.group.label + proved, r, mean, shape="vh"))
        ends = zip(("  from", "  to"), _ends(entry, summary), strict=True)
        for name, shares in ((entry.group.label, entry.certified), *ends):
            body.append([name, *(f"{share:.1f}" for share in shares)])
    for curve_ in attacks:
        i = next(i for i, e in enumerate(summary.groups) if curve_.belongs_to(e.group))
        line = _line(
            i, f"{curve_.group.label}, under attack", curve_.epsilon, curve_.correct, shape="hv"
        )
        line |= {"mode": "lines+markers", "line": {**line["line"], "dash": "dash", "width": 1.5}}
        line["marker"] = {"size": 8, "symbol": _MARKS[i % len(_MARKS)]}
        data.append(line)
        if curve_.images < summary.images:  # attacked images may be easier or harder than all
            r, mean, *_ = _for_browser(curve(curve_.group))
            name = f"{curve_.group.label}, the {curve_.images:,} images attacked"
            line = _line(i, name, r, mean, shape="vh")
            data.append({**line, "line": {**line["line"], "dash": "dot", "width": 1.2}})
    about = (
        "The share of images that are classified correctly and whose class provably cannot be "
        "changed by moving the pixels less than r (L2)."
    )
    if attacks:
        about += (
            " Lines with marks: what an attack of that strength left; the section Table has "
            "numbers."
        )
    layout = _layout("L2 radius r (pixel units)", "accuracy (%)", yaxis={"range": [0, 100]})
    header = ["method", *(f"r = {radius:g}" for radius in summary.radii)]
    about += f" Bands: {_bands(summary)}."
    return Chart("certified", "Certified accuracy", about, data, layout, header, body)


def _ends(entry: GroupSummary, summary: Summary) -> tuple[Sequence[float], Sequence[float]]:
    """The ends of the band at each radius of the report, in %."""
    logs = entry.group.logs
    if len(logs) == 1:
        return entry.lower, entry.upper
    shares = 100 * np.array([certified_accuracy(log, summary.radii) for log in logs])
    return shares.min(axis=0).tolist(), shares.max(axis=0).tolist()


def _bands(summary: Summary) -> str:
    seeds = [len(entry.acr) for entry in summary.groups]
    over_images = "95 % Clopper-Pearson intervals over images"
    if max(seeds) == 1:
        return over_images
    of_one = f"; with one seed, {over_images}" if min(seeds) == 1 else ""
    return "lowest to highest seed" + of_one


def acr(summary: Summary) -> Chart:
    """The average certified radius of each group with a bootstrap interval."""
    names, means, lows, highs = [], [], [], []
    for entry in summary.groups:
        values = statistics(entry.group, ())[:, :, :1]
        drawn = resample(np.zeros_like(values), values, np.random.default_rng(0))[:, 0]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        names.append(_text(entry.group.label))
        means.append(entry.acr_mean)
        lows.append(float(low))
        highs.append(float(high))
    error = {
        "type": "data",
        "symmetric": False,
        "color": "#7f7f7f",
        "array": [round(high - mean, 4) for high, mean in zip(highs, means, strict=True)],
        "arrayminus": [round(mean - low, 4) for low, mean in zip(lows, means, strict=True)],
    }
    marker = {"size": 11, "color": [_colour(i) for i in range(len(names))],
              "symbol": [_MARKS[i % len(_MARKS)] for i in range(len(names))]}  # fmt: skip
    trace = {
        "type": "scatter", "mode": "markers", "x": [round(m, 4) for m in means], "y": names,
        "error_x": error, "marker": marker, "showlegend": False,
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }  # fmt: skip
    # As names even where all of them are numbers.
    rows = {"type": "category", "automargin": True, "range": [len(names) - 0.5, -0.5]}
    # Several are compared with each other; the axis need not include 0.
    scale = {} if len(names) == 1 else {"rangemode": "normal"}
    layout = _layout("ACR (pixel units)", "", xaxis=scale, yaxis=rows)
    layout["height"] = 150 + 34 * len(names)
    layout["hovermode"] = "closest"
    body = [
        [entry.group.label, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}"]
        for entry, mean, low, high in zip(summary.groups, means, lows, highs, strict=True)
    ]
    of = [len(entry.acr) for entry in summary.groups]
    seeds = " and seeds" if max(of) > 1 else ""
    seeds += " (over images alone with one seed)" if min(of) == 1 < max(of) else ""
    about = (
        "The average certified radius, 0 counted where the class is wrong, with 95 % bootstrap "
        f"intervals over images{seeds}."
    )
    header = ["method", "ACR", "from", "to"]
    return Chart("acr", "Average certified radius", about, [trace], layout, header, body)


def p_lower(summary: Summary) -> Chart | None:
    """The distribution of p_lower; None if no log has it."""
    data, body, largest = [], [], 0.0
    for i, entry in enumerate(summary.groups):
        steps = ecdf(entry.group)
        if steps is None:
            continue
        p, mean, lowest, highest = _limit_steps(*steps)
        largest = max(largest, float(p[-1]))
        x = nines(p)
        if len(entry.group.logs) > 1:
            data += _band(i, x, lowest, highest, shape="hv")
        line = _line(i, entry.group.label, x, mean, shape="hv")
        line["customdata"] = [float(f"{value:.6f}") for value in p]
        line["hovertemplate"] = "%{y:.1f} % have p_lower at most %{customdata}"
        data.append(line)
        body.append([entry.group.label, *map(probability, entry.p_quantiles)])
    if not data:
        return None
    ticks = nines_ticks(largest)
    axis = {"tickvals": [float(nines(p)) for p in ticks], "ticktext": [f"{p:.9g}" for p in ticks]}
    layout = _layout("p_lower of the true class", "images with at most this p_lower (%)",
                     yaxis={"range": [0, 100]}, xaxis=axis)  # fmt: skip
    header = ["method", *(f"p {100 * q:g} %" for q in QUANTILES)]
    about = (
        "How sure the classifier provably is of the true class: at the left the images of which "
        "nothing is certified. The ACR rewards easy images, this shows the hard ones too."
    )
    if max(len(entry.acr) for entry in summary.groups) > 1:
        about += " Bands: lowest to highest seed."
    about += (
        " In the numbers, q % of images have a p_lower of at most that in column p q % (- where "
        "nothing is certified)."
    )
    return Chart("p_lower", "Distribution of p_lower", about, data, layout, header, body)


_TRAINING = (
    ("loss", "Loss", "Training loss of each epoch.", 1.0),
    ("test_accuracy_under_noise", "Accuracy under noise",
     "Noisy test images classified right, in %.", 100.0),
    ("distance", "Distance", "Mean L2 distance of the adversarial images, in pixel units.", 1.0),
    ("lambda", "Lambda", "DRF's price of distance after each epoch.", 1.0),
)  # fmt: skip


def training(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """Training curves of runs by name, one chart for each recorded quantity."""
    charts = []
    for key, title, about, factor in _TRAINING:
        data, body = [], []
        for i, (name, rows) in enumerate(runs.items()):
            known = [row for row in rows if isinstance(row.get(key), (int, float))]
            if not known:
                continue
            values = np.array([factor * row[key] for row in known])
            line = _line(i, name, np.array([row["epoch"] for row in known]), values)
            data.append({**line, "mode": "lines+markers"})
            body += [
                [name, str(row["epoch"]), f"{value:.4g}"]
                for row, value in zip(known, values, strict=True)
            ]
        if data:
            layout = _layout("epoch", title.lower() + (" (%)" if factor > 1 else ""))
            layout["height"] = 260
            header = ["run", "epoch", title.lower()]
            charts.append(Chart(f"training-{key}", title, about, data, layout, header, body))
    return charts


def _limit_steps(x: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most ``_MOST_STEPS`` of the steps, including the first and the last."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_STEPS)).round().astype(int))
    return tuple(values[kept] for values in (x, *others))


def _for_browser(steps: Curve) -> Curve:
    """A certified-accuracy curve, closed, with few steps and values at many radii.

    Browsers show values only at points.
    """
    r, *shares = _limit_steps(*steps)
    at = np.union1d(r, np.linspace(r[0], r[-1], _POINTS))
    mean, lowest, highest = (share[np.searchsorted(r, at, side="left")] for share in shares)
    return closed((at, mean, lowest, highest))


def _colour(i: int) -> str:
    """The colour of the i-th line in figures, except black, the background of a dark page."""
    colour = style.colour(i)
    return "#7f7f7f" if colour == "#000000" else colour


def _text(name: str) -> str:
    """A name escaped for plotly.js, which interprets some tags and entities."""
    return name.replace("&", "&amp;").replace("<", "&lt;")


def _line(i: int, name: str, x: np.ndarray, y: np.ndarray, shape: str = "linear") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _text(name),
        "x": np.round(np.asarray(x, float), 6).tolist(),
        "y": np.round(np.asarray(y, float), 4).tolist(),
        "line": {"color": _colour(i), "dash": _DASHES[i % len(_DASHES)], "shape": shape,
                 "width": 2},
        "hovertemplate": "%{y:.4~g}",
    }  # fmt: skip


def _band(
    i: int, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, shape: str
) -> list[dict[str, Any]]:
    quiet = {"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip",
             "line": {"width": 0, "shape": shape, "color": _colour(i)}}  # fmt: skip
    at = np.round(x, 6).tolist()
    filled = {"fill": "tonexty", "fillcolor": _colour(i) + "26"}
    return [
        {**quiet, "x": at, "y": np.round(lower, 4).tolist()},
        {**quiet, "x": at, "y": np.round(upper, 4).tolist(), **filled},
    ]


def _layout(
    x: str, y: str, xaxis: dict[str, Any] | None = None, yaxis: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "height": 420,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "hovermode": "x unified",
        "hoverdistance": -1,
        "legend": {"orientation": "h", "y": -0.2, "traceorder": "normal"},
        "xaxis": {"title": {"text": x}, "rangemode": "tozero", **(xaxis or {})},
        "yaxis": {"title": {"text": y}, **(yaxis or {})},
    }
