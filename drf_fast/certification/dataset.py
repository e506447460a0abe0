"""``certify_dataset``: the engine of ``drf-fast certify`` from Python."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from drf_fast.certification import engine, plan, stopping
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.certification.images import DatasetImages, TensorImages
from drf_fast.certification.loading import soundness
from drf_fast.certification.log import CertificationLog, Row, read_log, sidecar
from drf_fast.certification.log.sidecar import read_config
from drf_fast.checkpoints.checksum import content_sha256
from drf_fast.data.dataset import Dataset
from drf_fast.ops import checks as check
from drf_fast.runtime.text import UNNAMED


class DatasetCertificates(NamedTuple):
    """The certificates of M images, all on the CPU, in the order of ``index``.

    Attributes:
        index: (M,) int64 positions in the data set.
        label: (M,) int64 true classes.
        predict: (M,) int64 certified classes, -1 where it abstains.
        radius: (M,) float64 certified L2 radii in pixel units, 0 where it abstains.
        count: (M,) int64 votes of the chosen class among ``n``.
        n: (M,) int64 samples drawn for the bound.
        p_lower: (M,) float64 lower bounds of the chosen class's probability.
    """

    index: torch.Tensor
    label: torch.Tensor
    predict: torch.Tensor
    radius: torch.Tensor
    count: torch.Tensor
    n: torch.Tensor
    p_lower: torch.Tensor

    @property
    def acr(self) -> float:
        """The average certified radius: wrong and abstained images count as 0."""
        return float(torch.where(self.predict == self.label, self.radius, 0.0).mean())

    def certified_accuracy(self, radius: float = 0.0) -> float:
        """The share of images that are right and certified at ``radius`` at least."""
        right = self.predict == self.label
        return float((right & (self.radius >= radius)).double().mean())


class _InMemoryLog:
    """A sink of certificates that are not written to a file."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.rows: list[Row] = []

    def append(self, row: Row) -> None:
        self.done.add(row.idx)
        self.rows.append(row)

    def columns(self) -> dict[str, list[Any]]:
        """The columns by name, as ``read_log`` returns them."""
        names = (field.name for field in dataclasses.fields(Row))
        return {name: [getattr(row, name) for row in self.rows] for name in names}


def certify_dataset(
    classifier: SmoothedClassifier,
    images: Any,
    labels: Any = None,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    indices: Iterable[int] | None = None,
    radius: float | None = None,
    tolerance: float | None = None,
    skip_wrong: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    method: str | None = None,
    name: str = UNNAMED,
    progress: bool = True,
) -> DatasetCertificates:
    """CERTIFY many images as ``drf-fast certify`` does: batched, logged and resumable.

    The noise of an image depends on its position in the data set, so the certificates equal those
    of ``classifier.certify(..., image_id=position)``, whichever images are chosen and however the
    work was interrupted. ::

        found = drf_fast.certify_dataset(smoothed, test_set, indices=range(0, 10_000, 20),
                                         out="certificates.tsv", resume=True)
        print(found.acr, found.certified_accuracy(0.5))

    Args:
        classifier: the smoothed network, on the device to be used.
        images: (N, C, H, W) float pixels in [0, 1], or uint8 levels (divided by 255), as tensor or
            array; a torch data set of pairs (image, label); or a data set of ``drf_fast.data``.
        labels: (N,) true classes; None for a data set that has them.
        n0: samples that choose the class.
        n: fresh samples that bound its probability, at most.
        alpha: probability that a certificate is wrong.
        batch_size: rows of a forward pass; None measures the best one.
        indices: positions of the images to certify; None takes all.
        radius: stop an image as soon as it is decided whether its radius is at least this, with the
            same guarantee.
        tolerance: stop an image when n samples would add less than this to its radius.
        skip_wrong: spend no samples where the chosen class is wrong.
        out: log to write, one line per image, with its settings in the .json beside it; ``drf-fast
            report`` reads it. None keeps the certificates in memory only.
        resume: continue the log if it exists; network, images and settings must be the same, and
            what is left to a measurement is as the log records it. Of a torch data set the first
            32 images are compared.
        force: replace the log.
        method: name of the log's row in reports; None names it by its path.
        name: name of the data, for the log.
        progress: show cost, warnings and progress on stderr.

    Returns:
        ``DatasetCertificates`` of the chosen images, on the CPU.

    Raises:
        TypeError, ValueError: bad arguments, images or labels; a log that exists, or that was made
            with another network (of a callable that is no module nothing tells), other images or
            settings; a network of another width.
        OSError: the disk is full.

    Reference:
        Cohen, Rosenfeld, Kolter 2019, CERTIFY.
    """
    if not isinstance(classifier, SmoothedClassifier):
        raise TypeError(
            f"classifier must be a SmoothedClassifier, got {type(classifier).__name__}; pass "
            "SmoothedClassifier(network, num_classes, sigma)"
        )
    data = _images(images, labels, classifier.num_classes, name)
    chosen = _check_indices(indices, len(data))
    n0, n = check.count(n0, "n0"), check.count(n, "n")  # Python's integers, as JSON takes them
    distance = classifier.distance(data.float_images([chosen[0]]))
    rule = stopping.rule(n, classifier.drawn_sigma, alpha, distance, radius, tolerance)
    sample = data.float_images([chosen[0]])
    device = _device(classifier.base, getattr(data, "images", sample))
    sample = sample.to(device)
    if out is None and (resume or force):
        raise ValueError("resume and force are of a log: expected out= with them, got none")
    recorded = {}
    if out is not None and resume and sidecar(out).exists():
        recorded = read_config(Path(out))
    recorded_size = classifier.repeat(recorded)
    classifier.measure(sample)
    if batch_size is None:
        batch_size = recorded_size or min(classifier.batch_size(sample), max(n, n0))
    work = engine.Work(
        classifier,
        data,
        chosen,
        device,
        n0,
        rule,
        check.count(batch_size, "batch_size"),
        skip_wrong=skip_wrong,
    )
    log: Any = _InMemoryLog()
    if out is not None:
        log = _log(Path(out), _description(work, data, method, sample), resume, force)
    with contextlib.nullcontext() if out is None else log:
        if progress:
            plan.show(plan.make(work, log.done), work)
        engine.run(work, log, quiet=not progress)
    columns = log.columns() if out is None else vars(read_log(Path(out)))
    return _result(columns, chosen)


def _images(images: Any, labels: Any, num_classes: int, name: str) -> Any:
    if isinstance(images, Dataset):
        if images.num_classes != num_classes:
            raise ValueError(
                f"the data set has {images.num_classes} classes: expected the classifier's "
                f"{num_classes}; pass the data that it was trained on"
            )
        if labels is not None:
            raise ValueError(
                "labels must be None with a data set of drf_fast.data, which has its own, got some"
            )
        return images
    if isinstance(images, torch.utils.data.DataLoader):
        raise TypeError(
            "images must be a data set, whose positions name the noise, got a DataLoader; pass "
            "loader.dataset"
        )
    if isinstance(images, (str, Path, Mapping)):
        raise TypeError(
            f"images must be a tensor or array (N, C, H, W) or a data set, got "
            f"{type(images).__name__}; pass the arrays themselves, of an .npz file for example "
            'np.load(path)["images"] and np.load(path)["labels"]'
        )
    wrapper = DatasetImages
    if not (hasattr(images, "__getitem__") and hasattr(images, "__len__")) or hasattr(
        images, "dtype"
    ):
        wrapper = TensorImages
    return wrapper(images, labels, num_classes, name)


def _check_indices(indices: Iterable[int] | None, count: int) -> tuple[int, ...]:
    chosen = tuple(range(count) if indices is None else map(int, indices))
    if not chosen:
        raise ValueError("indices must name one image or more, got none")
    if len(set(chosen)) < len(chosen) or not all(0 <= index < count for index in chosen):
        raise ValueError(
            f"indices must be different positions from 0 to {count - 1}, got {chosen[:5]} and "
            f"{max(0, len(chosen) - 5)} more"
        )
    return chosen


def _device(base: Any, images: Any) -> torch.device:
    """That of the network; where it has no tensors of its own, that of the images."""
    tensors = [*base.parameters(), *base.buffers()] if isinstance(base, nn.Module) else []
    if not tensors and isinstance(images, torch.Tensor):
        return images.device
    return tensors[0].device if tensors else torch.device("cpu")


def _log(out: Path, description: dict[str, Any], resume: bool, force: bool) -> CertificationLog:
    if resume and force:
        raise ValueError("resume continues a log and force replaces it: expected one of them")
    if resume:
        return CertificationLog.resume(out, description)
    for path in (out, sidecar(out)):
        if path.exists() and not force:
            raise ValueError(
                f"{path} exists: expected a new file; continue it with resume=True, replace it "
                "with force=True, or choose another out"
            )
    return CertificationLog.create(out, description, force=force)


def _description(
    work: engine.Work, data: Any, method: str | None, sample: torch.Tensor
) -> dict[str, Any]:
    """The configuration of the log, with the keys that ``drf-fast certify`` records."""
    classifier, base = work.classifier, work.classifier.base
    optional = {
        "sound": soundness(classifier, sample, work.batch_size) if classifier.sound else None,
        # A plain function has no weights to hash.
        "checkpoint_sha256": content_sha256(dict(base.state_dict()))
        if isinstance(base, nn.Module)
        else None,
    }
    fingerprint = data.fingerprint if isinstance(data, Dataset) else data.fingerprint(work.indices)
    return {
        "method": method or "foreign",
        "training": {},
        "arch": type(base).__name__,
        "data": data.name,
        "split": data.split,
        "fingerprint": fingerprint,
        "sigma": classifier.sigma,
        **work.settings(),
        **{key: value for key, value in optional.items() if value is not None},
        **_index_settings(work.indices),
    }


def _index_settings(indices: tuple[int, ...]) -> dict[str, Any]:
    """``skip`` and ``indices_total`` if these are every k-th image (so that a report can tell which
    are missing), else the list of positions.
    """
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step > 0 and indices == tuple(range(0, step * len(indices), step)):
        return {"skip": step, "indices_total": len(indices)}
    return {"indices": list(indices)}


def _result(columns: dict[str, Any], chosen: tuple[int, ...]) -> DatasetCertificates:
    row_of = {int(index): row for row, index in enumerate(columns["idx"])}
    order = torch.tensor([row_of[index] for index in chosen], device="cpu")

    def column(name: str, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.as_tensor(columns[name], dtype=dtype, device="cpu")[order]

    return DatasetCertificates(
        column("idx"),
        column("label"),
        column("predict"),
        column("radius", torch.float64),
        column("count"),
        column("n"),
        column("p_lower", torch.float64),
    )
