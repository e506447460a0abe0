"""Loading of checkpoint and data set into a smoothed classifier, shared by several commands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from drf_fast import data, models
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.certification.engine import computation
from drf_fast.certification.log import sidecar
from drf_fast.certification.log.sidecar import ENVIRONMENT
from drf_fast.certification.network import as_requested
from drf_fast.certification.noise import ASSUMPTIONS, total_distance
from drf_fast.checkpoints import first_layer, given
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints.fitting import first_of
from drf_fast.config import run_files, tags
from drf_fast.config.durations import seconds
from drf_fast.config.look import AttackConfig
from drf_fast.config.options import CertifyConfig, SmoothedConfig
from drf_fast.config.tags import Tag
from drf_fast.config.training import trained
from drf_fast.config.values import updated
from drf_fast.data import folders
from drf_fast.data.dataset import Dataset
from drf_fast.errors import InputError, RunError
from drf_fast.functional import noisy_repeat
from drf_fast.runtime import machine, processes
from drf_fast.runtime.files import read_json
from drf_fast.runtime.level_table import level_table
from drf_fast.runtime.progress import say

_Resumable = TypeVar("_Resumable", CertifyConfig, AttackConfig)

# Settings that are measured and recorded in a log, and the values that request a measurement.
_MEASURED = tags.having(SmoothedConfig, Tag.MEASURED)
_TO_MEASURE = ("auto", "fastest")
_PROBE = 64  # samples, enough to see that rows depend on each other
_MOST_THREADS = 4096  # that a log may record, far above any machine
_ENOUGH_IMAGES = 10  # to be of several classes
_SHARD_BATCH = {"cpu": 256, "cuda": 2048}
_SHARD_PIXELS = 2**27  # of a forward pass: 8 GB of the largest activations of a ResNet-50


@dataclass(frozen=True)
class Source:
    """A network, its images and the noise level as read, before device and form are chosen.

    Attributes:
        saved: the checkpoint, or the same entries for a network whose own code loads its weights.
        path: of the checkpoint; None for such a network.
        images: the data set.
        sigma: noise level in pixel units.
        model: the network made by the user's own code; None if it is built from ``saved``.
        data_dir: the folder of the images, if one is known.
    """

    saved: dict[str, Any]
    path: Path | None
    images: Dataset
    sigma: float
    model: nn.Module | None
    data_dir: Path | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The first keys of every log: the network, the images and the noise level."""
        recorded = self.saved["config"]
        return {
            "method": recorded["method_label"],
            "training": trained(recorded),
            "checkpoint_sha256": self.saved["sha256"],
            "arch": self.saved["arch"],
            "data": self.images.name,
            "split": self.images.split,
            "fingerprint": self.images.fingerprint,
            "sigma": self.sigma,
        }

    def default_path(self, name: str) -> Path:
        """The default path of an output file: beside the checkpoint.

        Prefixed with its name too, unless that is ``checkpoint.pt``: a folder may hold several.
        Without one, in the working directory, prefixed with the name of the network.
        """
        if self.path is None:
            return Path(f"{self.saved['arch'].replace(':', '.')}-{name}")
        if self.path.name != run_files.CHECKPOINT:
            name = f"{self.path.stem}-{name}"
        return self.path.parent / name


@dataclass(frozen=True)
class Loaded:
    """All that a run of certification needs.

    Attributes:
        source: the network, its images and the noise level as read.
        indices: positions of the images of the run.
        device: where to compute.
        classifier: the smoothed network, in its form.
        batch_size: rows of a forward pass.
        sound: what a log records about sound noise: s in levels, tau, the pixels D of an image, and
            the number of rows whose independence was tested; None for ordinary noise.
    """

    source: Source
    indices: tuple[int, ...]
    device: torch.device
    classifier: SmoothedClassifier
    batch_size: int
    sound: dict[str, Any] | None

    @property
    def images(self) -> Dataset:
        """The data set."""
        return self.source.images

    @property
    def distance(self) -> float:
        """By which bounds are lowered for the noise: D tau, or 0."""
        return total_distance(self.sound["tau"], self.sound["pixels"]) if self.sound else 0.0

    @property
    def computation(self) -> dict[str, Any]:
        """See ``engine.computation``."""
        return computation(self.classifier, self.device, self.batch_size)


def with_recorded_choices(config: _Resumable, out: Path | None) -> _Resumable:
    """``config`` with what is to be measured replaced by what the resumed log ``out`` records.

    And with its number of threads, on which sums in the network depend.
    """
    if not config.resume or out is None or not sidecar(out).exists():
        return config
    recorded: Any = read_json(sidecar(out))
    if not isinstance(recorded, dict):
        return config
    auto = [key for key in _MEASURED if getattr(config, key) in _TO_MEASURE and key in recorded]
    values = {key: as_requested(recorded[key]) for key in auto}
    threads = _recorded_threads(recorded) if config.threads == "auto" else None
    if threads is not None:
        values["threads"] = threads
        if threads != torch.get_num_threads() and processes.rank() == 0:
            say(f"threads: {threads}, as recorded in {sidecar(out)}; see --threads")
    return updated(config, values, str(sidecar(out)))


def _recorded_threads(recorded: dict[str, Any]) -> int | None:
    """The number of threads of each process, if a log of as many processes names one."""
    environment = recorded.get(ENVIRONMENT)
    if not isinstance(environment, dict) or environment.get("processes") != processes.count():
        return None
    threads = environment.get("threads")
    return threads if type(threads) is int and 1 <= threads <= _MOST_THREADS else None


def source(config: SmoothedConfig) -> Source:
    """Read the checkpoint or the user's code, and the data set.

    Raises:
        InputError: a bad checkpoint or data set, or no noise level.
    """
    path = None if config.checkpoint is None else checkpoint.locate(config.checkpoint)
    saved = given.read(path, config.arch, config.normalize)
    trained = saved["config"]
    sigma = trained["sigma"] if config.sigma is None else config.sigma
    name = config.data or trained["data"]
    if sigma is None or name is None:
        raise InputError(
            f"{path or '--arch'} does not say its noise level and data set, as a network of "
            "another program: expected --sigma and --data, got "
            f"{'neither' if sigma is None and name is None else 'one of them'}; pass both"
        )
    if config.sigma is not None and trained["sigma"] not in (None, config.sigma):
        say(f"the network was trained at sigma {trained['sigma']:g}, not {config.sigma:g}")
    place = config.data_dir or _path(trained.get("data_dir"))
    recorded = saved.get("image_shape")  # absent where only the images tell it
    channels, classes = recorded and recorded[0], saved.get("num_classes")
    images = data.load(name, config.split, data_dir=place, channels=channels, num_classes=classes)
    shape, model = images.image_shape, None
    if checkpoint.CONTENT in saved:
        model, saved = given.network(saved, path, images.num_classes, shape)
        for note in saved["notes"]:
            say(note)
        if config.normalize is None and saved["config"]["normalize"] == "none":
            note = first_layer.advice(model, shape, partial(_noisy_rows, images, sigma))
            if note is not None:
                say(note)
    elif "assumed" in saved:
        saved = _completed(saved, images, sigma)
    if images.num_classes != saved["num_classes"] or shape != tuple(saved["image_shape"]):
        raise InputError(
            f"{path} classifies images {tuple(saved['image_shape'])} into {saved['num_classes']} "
            f"classes, got {images.name} with images {shape} and {images.num_classes} classes; "
            "pass the data set that it was trained on"
        )
    _compare_classes(saved.get("class_names"), images, path)
    return Source(saved, path, images, float(sigma), model, place)


def _compare_classes(trained: list[str] | None, images: Dataset, path: Path | None) -> None:
    """Compare the names of the classes with those of the image folders of the training.

    Raises:
        InputError: a name that both have is that of another class.
    """
    if images.name not in folders.NAMES:  # names of other data sets may be made up
        return
    pairs = list(zip(trained or (), images.class_names, strict=False))
    other = [f"{two!r} for {one!r}" for one, two in pairs if one != two]
    if not trained or not other:
        return
    shown = first_of(other)
    moved = [name for name in images.class_names if name in trained]
    moved = [name for name in moved if images.class_names.index(name) != trained.index(name)]
    if moved:
        raise InputError(
            f"{path} was trained on other classes than {images.name} has here: expected those of "
            f"the training, got {shown}, so that {moved[0]!r} is class "
            f"{images.class_names.index(moved[0])} and was {trained.index(moved[0])}; pass a "
            "--data-dir with the class folders of the training"
        )
    say(f"warning: classes have other names than in the training: {shown}; are they the same?")


def load(config: SmoothedConfig, found: Source | None = None) -> Loaded:
    """Move the network to its device and choose its form; all processes use process 0's choice.

    The number of CPU threads stays as ``config`` sets it.

    Args:
        config: the settings.
        found: what ``source(config)`` has returned, if it was called already.

    Raises:
        InputError: a bad checkpoint, data set or setting.
        RunError: this process cannot run the network as process 0 does.
    """
    found = found or source(config)
    images, model = found.images, found.model
    indices = tuple(range(0, len(images), config.skip))[: config.max_images]
    if processes.rank() == 0:
        _warn_of_few_classes(images, indices)
    if config.threads != "auto":
        machine.set_threads(config.threads)
    device = machine.pick_device(config.device)
    if isinstance(config, CertifyConfig):
        processes.start(device, seconds(config.timeout, "timeout"))
    elif processes.count() > 1:
        raise InputError(
            f"expected one process, got {processes.count()} (WORLD_SIZE): only train and certify "
            "divide their work; start this command without torchrun"
        )
    if model is None:
        assert found.path is not None  # without a checkpoint there is a model
        model = checkpoint.build_model(found.saved, found.path, config.arch)
    if config.sound:  # raises for a bad sigma, before anything expensive
        with _as_input_error():
            level_table(found.sigma)
    sample = images.float_images(list(indices[:1])).to(device)
    classifier = _classifier(config, found, model.to(device), sample)
    batch_size = _batch_size(config, classifier, sample)
    # Here, so that a network whose rows depend on each other is refused before a log is begun.
    classifier.select(sample, min(batch_size, _PROBE), batch_size)
    sound = None
    if config.sound:
        with _as_input_error():
            sound = soundness(classifier, sample, batch_size)
    return Loaded(found, indices, device, classifier, batch_size, sound)


def _classifier(
    config: SmoothedConfig, found: Source, model: nn.Module, sample: torch.Tensor
) -> SmoothedClassifier:
    """The smoothed classifier in the form that process 0 chose with the sample (1, ...)."""
    smoothed = partial(
        SmoothedClassifier,
        model,
        found.images.num_classes,
        found.sigma,
        sound=config.sound,
        seed=config.seed,
    )
    # Shards on different machines may measure different choices, but must form one log.
    to_measure = config.precision in _TO_MEASURE and not _is_whole(config)
    classifier = smoothed(
        precision="fp32" if to_measure else config.precision,
        compile=config.compile,
        memory_format=None if config.memory_format == "auto" else config.memory_format,
    )
    choices = classifier.measure(sample)
    shared_choices = processes.broadcast(choices)
    if shared_choices != choices:
        classifier = smoothed(**shared_choices)
        if classifier.measure(sample) != shared_choices:
            raise RunError(
                "all processes run the network as process 0 does, which a log records: expected "
                f"{shared_choices}, got {classifier.choices} here, without "
                f"{', '.join(classifier.left_out)}; pass --precision fp32 without --compile, or "
                "use machines of one kind"
            )
    return classifier


def _batch_size(
    config: SmoothedConfig, classifier: SmoothedClassifier, sample: torch.Tensor
) -> int:
    """The rows of a forward pass: given, or process 0's fastest; fixed where a log is in parts."""
    if config.batch_size != "auto":
        return config.batch_size
    if not _is_whole(config):
        # The same on every machine: rows of large images are fewer, in powers of two.
        fitting = 2 ** int(math.log2(_SHARD_PIXELS / sample[0].numel()))
        return max(1, min(_SHARD_BATCH[sample.device.type], fitting))
    most = max(config.n, getattr(config, "n0", 1))
    return processes.broadcast(min(classifier.batch_size(sample), most))


def _is_whole(config: SmoothedConfig) -> bool:
    """Whether the command makes a whole log, not a part of one."""
    return getattr(config, "shard", None) is None


def _warn_of_few_classes(images: Dataset, indices: tuple[int, ...]) -> None:
    """Warn if the first images of a data set that is ordered by class were chosen."""
    count = len(indices)
    classes = len(images.labels.unique())
    found = len(images.labels[list(indices)].unique())
    if count < _ENOUGH_IMAGES or not (found < min(classes, count) / 2 or found == 1 < classes):
        return
    say(
        f"warning: the {count:,} images chosen are of {found} of {classes} classes, as the first "
        f"ones of images in the order of their classes are; --skip {max(2, len(images) // count)} "
        "spreads them over the data set"
    )


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    """Report a ValueError inside the block as bad use of --sound."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"--sound: {error}") from error


def soundness(
    classifier: SmoothedClassifier, sample: torch.Tensor, batch_size: int
) -> dict[str, Any]:
    """Test that rows are independent; return what a log records about sound certificates.

    Raises:
        ValueError: rows depend on each other.
    """
    tested = classifier.row_test(sample, batch_size)
    return {
        "s": 255 * classifier.sigma,
        "tau": level_table(classifier.sigma).distance,
        "pixels": sample[0].numel(),
        "rows_tested": tested.rows,
        "assumes": ASSUMPTIONS,
    }


def _completed(saved: dict[str, Any], images: Dataset, sigma: float) -> dict[str, Any]:
    """A checkpoint of another repository, with the entries that it lacks taken from the images."""
    for note in saved["notes"]:
        say(note)
    shape = images.image_shape
    models.check_shape(saved["arch"], shape)
    saved = {**saved, "image_shape": list(shape)}
    saved = first_layer.pick(saved, _noisy_rows(images, sigma))
    if saved["assumed"] is not None:
        say(f"warning: {saved['assumed']}")
    return saved


def _noisy_rows(images: Dataset, sigma: float) -> torch.Tensor:
    """Some images with noise, by which a first layer is recognised."""
    ids = torch.arange(min(len(images), 256))
    return noisy_repeat(images.float_images(ids.tolist()), sigma, 1, seed=0, image_ids=ids)


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)
