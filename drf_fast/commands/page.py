"""The page of ``report --html``, which ``train`` and ``sweep`` write into their folders too."""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from drf_fast import data
from drf_fast.attacks.gallery import choose
from drf_fast.attacks.log import Attacked
from drf_fast.certification.log import Log
from drf_fast.certification.log.sidecar import environments
from drf_fast.config import run_files
from drf_fast.data.dataset import Dataset
from drf_fast.errors import InputError
from drf_fast.functional import noisy_repeat
from drf_fast.report import page
from drf_fast.report.attacks import curves_of, on_network_of
from drf_fast.report.sources import read_all
from drf_fast.report.summary import Summary, summarize
from drf_fast.runtime.files import read_json
from drf_fast.runtime.progress import say
from drf_fast.training.metrics import read_metrics

_MOST_PICTURES, _MOST_PIXELS = 200, 64


def write(
    path: Path, summary: Summary, attacked: Sequence[Attacked] = (), warnings: Sequence[str] = ()
) -> None:
    """Write the page of a summary, with data found beside its logs: training, images, attacks.

    Raises:
        InputError: a package is missing, or the folder cannot be written.
    """
    curves, broken = curves_of(summary, attacked)
    pictures, of = _gallery(summary, attacked)
    page.write(
        path,
        summary,
        attacks=curves,
        training=_training(summary),
        gallery=pictures,
        gallery_of=of,
        warnings=[*warnings, *broken],
    )


def write_beside(folder: Path, logs: Sequence[str | Path]) -> Path | None:
    """Write the page into a run's or sweep's folder; None, with a message, without the packages."""
    if page.missing():
        needed = " and ".join(page.missing())
        say(
            f"no {run_files.PAGE}: it needs {needed}, which are not installed; everything else is "
            "written"
        )
        return None
    found = read_all(logs)
    write(folder / run_files.PAGE, summarize(found.logs, paper=False), found.attacks)
    return folder / run_files.PAGE


def _training(summary: Summary) -> dict[str, list[Mapping[str, Any]]]:
    """The epochs of the runs whose folders hold the logs."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for entry in summary.groups:
        for log in entry.group.logs:
            rows = read_metrics(log.path.parent)
            seed = ((log.config or {}).get("training") or {}).get("seed")
            which = log.path.parent.name if seed is None else f"seed {seed}"
            name = entry.group.label + (f", {which}" if len(entry.group.logs) > 1 else "")
            if rows:
                runs[name] = list(rows)
    return runs


def _gallery(summary: Summary, attacked: Sequence[Attacked]) -> tuple[list[page.Picture], str]:
    """Images of the first log, from the smallest to the largest radius, wrong ones first."""
    log = summary.groups[0].group.logs[0]
    try:
        images = _images_of(log)
    except InputError as error:
        say(f"the page has no images: {error}")
        return [], ""
    positions = {int(index): at for at, index in enumerate(log.idx)}
    chosen = [positions[index] for index, _ in choose(log, "radius", _MOST_PICTURES, epsilon=0.0)]
    group = summary.groups[0].group
    attack_results = _attack_results(log, group.sigma, attacked, images)
    pictures = [_picture(log, at, images, group.sigma, attack_results) for at in chosen]
    return pictures, group.label


def _images_of(log: Log) -> Dataset:
    """The data set of a log.

    Raises:
        InputError: unknown, missing, or changed since.
    """
    config = log.config or {}
    if not isinstance(config.get("data"), str) or config.get("split") not in ("test", "train"):
        raise InputError(f"{log.path} does not say of which data set it is")
    place, channels = _recorded_folder(log)
    if place is None and config["data"] in data.OWN:
        raise InputError(f"nothing beside {log.path} says where its {config['data']} lies")
    images = data.load(
        config["data"], config["split"], data_dir=place, download=False, channels=channels
    )
    if images.fingerprint != config.get("fingerprint") or log.idx.max() >= len(images):
        raise InputError(f"{config['data']} holds other images than {log.path} was made of")
    return images


def _recorded_folder(log: Log) -> tuple[Path | None, int]:
    """The folder of the images: as the log's last run had it, else as the training run did.

    And how many channels its images had; three, where a log is older than grey images of one.
    """
    runs = environments(log.config or {})[::-1]
    with contextlib.suppress(InputError):
        runs.append(read_json(log.path.parent / run_files.SETTINGS))
    for run in runs:
        if isinstance(run, dict) and isinstance(run.get("data_dir"), str):
            return Path(run["data_dir"]), run.get("channels", 3)
    return None, 3


def _attack_results(
    log: Log, sigma: float | None, attacked: Sequence[Attacked], images: Dataset
) -> dict[int, tuple[str, bool]]:
    """Results of attacks on the log's images, at the smallest epsilon that changed the class."""
    rows = [row for one in on_network_of(log, sigma, attacked) for row in one.rows]
    attack_results: dict[int, tuple[str, bool]] = {}
    for row in sorted(rows, key=lambda row: row.epsilon):
        if attack_results.get(row.idx, ("", False))[1]:
            continue
        became = images.class_name(row.predict) if row.changed else ""
        said = f"attacked: {became} at {row.distance:.2f}" if row.changed else (
            f"withstands {row.epsilon:g}" if row.predict == row.clean != -1
            else f"undecided at {row.epsilon:g}"
        )  # fmt: skip
        attack_results[row.idx] = (said, row.changed)
    return attack_results


def _state(log: Log, at: int) -> str:
    if log.predict[at] == -1:
        return "abstains"
    if log.n is not None and log.n[at] == 0:  # --skip-wrong
        return "skipped"
    return "right" if log.correct[at] else "wrong"


def _picture(
    log: Log,
    at: int,
    images: Dataset,
    sigma: float | None,
    attack_results: Mapping[int, tuple[str, bool]],
) -> page.Picture:
    idx, predict = int(log.idx[at]), int(log.predict[at])
    x = images.float_images([idx])
    shown = [x[0]]
    if sigma is not None:
        ids = torch.tensor([idx])
        shown.append(noisy_repeat(x, sigma, 1, seed=0, image_ids=ids, stream="selection")[0])
    said, changed = attack_results.get(idx, ("", False))
    return page.Picture(
        idx=idx,
        label=images.class_name(int(log.label[at])),
        predict="" if predict == -1 else images.class_name(predict),
        radius=float(log.radius[at]),
        state=_state(log, at),
        attacked=said,
        changed=changed,
        sources=tuple(map(_source, shown)),
    )


def _source(picture: torch.Tensor) -> str:
    """A (C, H, W) picture as the data: URI of a PNG of at most 64 x 64 pixels.

    Of a larger one every k-th pixel: the mean of several would show less noise than there is.
    """
    levels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    factor = math.ceil(max(image.size) / _MOST_PIXELS)
    if factor > 1:
        size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
        image = image.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
