"""``drf-fast gap``: the confidence gap of networks under noise, Fig. 2 of the DRF paper.

For image x with label y and noise delta ~ N(0, sigma^2 I) the gap is

    log F^y(x + delta) - max_{c != y} log F^c(x + delta),

which equals the difference of the logits, z^y - max_{c != y} z^c, since log F = z - logsumexp(z).
It is computed from the logits, so no probability underflows. It is above 0 exactly if the copy is
classified right, and larger further from the decision boundary.

Reference:
    Wang, Zhou, Liu 2024, Fig. 2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drf_fast.certification import loading
from drf_fast.config import tags
from drf_fast.config.certification import check_settings
from drf_fast.config.look import GapConfig
from drf_fast.config.options import NetworkConfig, PredictConfig
from drf_fast.config.ranges import check_ranges
from drf_fast.errors import InputError, RunError
from drf_fast.functional import noisy_repeat
from drf_fast.report import style
from drf_fast.report.tables import draw_tables
from drf_fast.runtime import machine
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.modules import dtype_of
from drf_fast.runtime.progress import Tracker, say
from drf_fast.runtime.text import number_of

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
THRESHOLDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = 1024  # of a forward pass
_BINS, _POINTS = 60, 512
_WHAT = {
    "copy": "noisy copies classified right",
    "vote": "all noisy copies of images that most of their copies get right",
    "all": "all noisy copies",
}


@dataclass(frozen=True, eq=False)
class Gaps:
    """The gaps of one method at one sigma; those of several checkpoints (seeds) are concatenated.

    Attributes:
        name: method and sigma.
        checkpoints: the networks.
        values: float64, one per selected copy; +inf if all other classes have probability 0.
        copies: number of noisy copies.
        right: number of those that are classified right.
        data: data set and split.
        images: number of images per network.
    """

    name: str
    checkpoints: tuple[Path, ...]
    values: np.ndarray
    copies: int
    right: int
    data: str
    images: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; quantiles are gaps of the sample, ``null`` where infinite."""
        finite = self.values[np.isfinite(self.values)]
        quantiles = np.quantile(self.values, QUANTILES, method="lower")
        return {
            "name": self.name,
            "checkpoints": [str(path) for path in self.checkpoints],
            "data": self.data,
            "images": self.images,
            "copies": self.copies,
            "accuracy_under_noise": self.right / self.copies,
            "gaps": self.values.size,
            "infinite": self.values.size - finite.size,
            "mean": float(finite.mean()) if finite.size else None,
            "std": float(finite.std(ddof=1)) if finite.size > 1 else None,
            "quantiles": {
                f"{q:g}": float(v) if np.isfinite(v) else None
                for q, v in zip(QUANTILES, quantiles, strict=True)
            },
            "share_below": {f"{t:g}": float((self.values < t).mean()) for t in THRESHOLDS},
        }


def run(config: GapConfig) -> int:
    """The command: prints the numbers, and draws the figure with ``--plot``.

    Returns:
        0, the exit status.

    Raises:
        InputError: a bad checkpoint, data set, setting or output.
        RunError: a network that returns NaN, or that classifies nothing right.
    """
    check_ranges(config)
    if config.plot is not None:
        style.check_path(config.plot, config.force)
    found = measure(config)
    if config.plot is not None:
        draw(found, config.plot, _caption(config, found))
        say(f"wrote {config.plot}")
    if config.json:
        numbers = [gaps.as_dict() for gaps in found]
        print(json.dumps({"caption": _caption(config, found), "methods": numbers}, indent=2))
    else:
        print(as_text(found, _caption(config, found)))
    return 0


@machine.same_threads()
def measure(config: GapConfig) -> list[Gaps]:
    """The gaps of each method and sigma, in the order of the checkpoints.

    Raises:
        InputError, RunError: see ``run``; networks of different images.
    """
    images: dict[str, str] = {}
    of_name: dict[str, list[tuple[Path, np.ndarray, np.ndarray, str]]] = {}
    networks: dict[str, Path] = {}
    for given in config.checkpoints or (None,):  # None: a network whose code loads its weights
        loaded = loading.load(_as_predict(config, given))
        saved = loaded.source.saved
        path = given or Path(saved["arch"])
        first = networks.setdefault(saved["sha256"], path)
        if first is not path:
            raise InputError(
                f"{path} holds the same network as {first}: expected each network once, or it "
                "counts double; remove one"
            )
        method = saved["config"]["method_label"]
        method = str(path) if method == "foreign" else method  # not known to be seeds of one
        name = f"{method}, σ = {loaded.classifier.sigma:g}"
        data = f"{loaded.images.name} ({loaded.images.split})"
        images[loaded.images.fingerprint] = data
        if len(images) > 1:
            raise InputError(
                f"{path} is measured on other images than the networks before it: expected the "
                f"same for all, got {' and '.join(images.values())}; pass --data for all of them"
            )
        gaps = gaps_of(loaded, config.num_samples, config.seed)
        of_name.setdefault(name, []).append((path, gaps, chosen(gaps, config.over), data))
    found = [
        Gaps(
            name=name,
            checkpoints=tuple(path for path, *_ in parts),
            values=np.concatenate([gaps[keep] for _, gaps, keep, _ in parts]),
            copies=sum(gaps.size for _, gaps, _, _ in parts),
            right=sum(int((gaps > 0).sum()) for _, gaps, _, _ in parts),
            data=parts[0][3],
            images=len(parts[0][1]),
        )
        for name, parts in of_name.items()
    ]
    for gaps in found:
        if gaps.values.size == 0:
            raise RunError(
                f"{gaps.name}: no gap to show, {_WHAT[config.over]} are none of {gaps.copies:,}; "
                "is it the right checkpoint, data set and sigma?"
            )
    return found


def _as_predict(config: GapConfig, checkpoint: Path | None) -> PredictConfig:
    shared: dict[str, Any] = {name: getattr(config, name) for name in tags.of(NetworkConfig)}
    predict = PredictConfig(
        checkpoint=checkpoint, batch_size=_ROWS, memory_format="contiguous", **shared
    )
    check_settings(predict)
    return predict


def gaps_of(loaded: loading.Loaded, num_samples: int, seed: int) -> np.ndarray:
    """(images, num_samples) float64 gaps of noisy copies of each image.

    The noise is that of the stream "prediction"; a copy of an image is the same for every network
    of one sigma.

    Raises:
        RunError: the network returns NaN.
    """
    network: Any = loaded.classifier.base
    network.eval()
    kind = dtype_of(network, torch.float32)
    rows = min(num_samples, _ROWS)
    together = max(1, _ROWS // rows)
    gaps = np.empty((len(loaded.indices), num_samples))
    with Tracker("gap", len(loaded.indices)) as tracker:
        started, done = time.perf_counter(), 0
        for at in range(0, len(loaded.indices), together):
            ids = list(loaded.indices[at : at + together])
            x = loaded.images.float_images(ids).to(loaded.device)
            labels = torch.as_tensor(loaded.images.labels)[ids].to(loaded.device)
            for offset in range(0, num_samples, rows):
                count = min(rows, num_samples - offset)
                noisy = noisy_repeat(
                    x,
                    loaded.classifier.sigma,
                    count,
                    seed=seed,
                    image_ids=torch.tensor(ids, device=loaded.device),
                    sample_offset=offset,
                    stream="prediction",
                )
                with torch.no_grad():
                    logits = logits_of(network(noisy.to(kind)))
                part = confidence_gap(logits, labels.repeat_interleave(count))
                gaps[at : at + len(ids), offset : offset + count] = (
                    part.reshape(len(ids), count).cpu().numpy()
                )
            done += len(ids)
            rate = done * num_samples / (time.perf_counter() - started)
            tracker.advance(len(ids), f"{rate:,.0f} samples/s")
    if np.isnan(gaps).any():
        name = loaded.source.path or loaded.source.saved["arch"]
        raise RunError(f"{name}: the network returns NaN; it diverged, train it again")
    return gaps


def confidence_gap(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)^y - max_{c != y} log softmax(logits)^c.

    Args:
        logits: (N, K), K at least 2.
        target: (N,) int64.

    Returns:
        (N,) float64: the difference of the logits; +inf where all other logits are -inf, NaN where
        a row holds one.
    """
    logits = logits.double()
    own = logits.gather(1, target.unsqueeze(1))
    others = logits.scatter(1, target.unsqueeze(1), -torch.inf)
    return own.squeeze(1) - others.amax(1)


def chosen(gaps: np.ndarray, over: str) -> np.ndarray:
    """Which copies are selected by ``over``: bool of the shape of ``gaps``, (images, copies)."""
    right = gaps > 0
    if over == "vote":
        return np.broadcast_to(2 * right.sum(1, keepdims=True) > gaps.shape[1], gaps.shape)
    return right if over == "copy" else np.ones_like(right)


def as_text(found: Sequence[Gaps], note: str) -> str:
    """The numbers as a text table."""
    quantiles = [f"q{100 * q:g}%" for q in QUANTILES]
    header = ["method", "nets", "noisy acc", "mean", *quantiles]
    header += [f"< {t:g}" for t in THRESHOLDS]
    body = []
    for gaps in found:
        numbers = gaps.as_dict()
        shown = [numbers["mean"], *numbers["quantiles"].values()]
        body.append(
            [
                gaps.name,
                str(len(gaps.checkpoints)),
                f"{100 * numbers['accuracy_under_noise']:.1f}",
                *("inf" if value is None else f"{value:.2f}" for value in shown),
                *(f"{100 * share:.1f}" for share in numbers["share_below"].values()),
            ]
        )
    return draw_tables([(header, body)], f"{note}; columns < t: % of these gaps below t.", "plain")


def _caption(config: GapConfig, found: Sequence[Gaps]) -> str:
    copies = f"{config.num_samples} noisy cop{'y' if config.num_samples == 1 else 'ies'} of each"
    images = f"{number_of(found[0].images, 'image')} of {found[0].data}"
    return f"Confidence gap over {_WHAT[config.over]}: {images}, {copies}"


def draw(found: Sequence[Gaps], path: Path, caption: str) -> None:
    """Histogram and kernel density (Gaussian, Scott's rule) of each method.

    Raises:
        InputError: nothing finite to draw, or the folder cannot be written.
        OSError: the disk is full.
    """
    finite = [gaps.values[np.isfinite(gaps.values)] for gaps in found]
    if not any(values.size for values in finite):
        raise InputError(f"cannot plot to {path}: expected finite gaps, got none")
    low = min(0.0, *(np.quantile(v, 0.001) for v in finite if v.size))
    high = max(np.quantile(v, 0.999) for v in finite if v.size)
    high = high if high > low else low + 1.0
    figure, axes = style.figure()
    for i, (gaps, values) in enumerate(zip(found, finite, strict=True)):
        if values.size == 0:
            continue
        colour = style.colour(i)
        edges = np.linspace(low, high, _BINS + 1)
        heights = np.histogram(values, edges)[0] / (values.size * (edges[1] - edges[0]))
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.22)
        median = np.quantile(values, 0.5, method="lower")  # a gap of the sample, as in the table
        label = f"{style.literal(gaps.name)}: mean {values.mean():.2f}, median {median:.2f}"
        if len(gaps.checkpoints) > 1:
            label += f" ({len(gaps.checkpoints)} networks)"
        x = np.linspace(low, high, _POINTS)
        density = _density(values, x)
        if density is None:  # all gaps alike: there is nothing to smooth
            axes.axvline(values[0], color=colour, linestyle=style.dashes(i), label=label)
            continue
        axes.plot(x, density, color=colour, linestyle=style.dashes(i), linewidth=1.8, label=label)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(r"confidence gap $\log F^y(x+\delta) - \max_{c\neq y} \log F^c(x+\delta)$")
    axes.set_ylabel("density (1 / unit of gap)")
    axes.legend(frameon=False, fontsize=8, loc="best")
    style.heading(figure, caption)
    style.save(figure, path)


def _density(values: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The kernel density at x; ``None`` if the values have no spread."""
    from scipy.stats import gaussian_kde

    if values.size < 2 or np.ptp(values) < 1e-9 * max(1.0, float(np.abs(values).max())):
        return None
    return gaussian_kde(values)(x)
