"""CAT-RS's target: the smoothed prediction of a trained network, the teacher, on training images.

Its votes are counted once, at the start of a run, on the images without augmentation and at the
noise level that the teacher was trained with. They are saved in the run folder, so a resumed run
continues with the same numbers and does not need the teacher.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import read_array
from torch import nn

from drf_fast import data
from drf_fast.certification.classifier import SmoothedClassifier
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config import run_files
from drf_fast.config.options import TrainConfig
from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.functional import noise_key
from drf_fast.runtime import processes
from drf_fast.runtime.files import atomic_file, read_file
from drf_fast.runtime.progress import Tracker
from drf_fast.runtime.randomness import TEACHER
from drf_fast.training.run import Run

_ROWS, _PIXELS = {"cpu": 512, "cuda": 8192}, 2**26  # maxima for a forward pass
_VOTES = 2**15  # votes between two updates of the progress display


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode, its noise level in pixel units, the hash of its file."""

    network: nn.Module
    sigma: float
    sha256: str


def load(
    config: TrainConfig,
    num_classes: int,
    image_shape: tuple[int, ...],
    device: torch.device,
    sha256: str | None = None,
) -> Teacher:
    """The network of ``--catrs-teacher``; for a resumed run it must have the hash ``sha256``.

    Raises:
        InputError: none given, not a checkpoint of ours, of other images or classes, or not the one
            that the run was started with.
    """
    if config.catrs_teacher is None:
        raise InputError(
            "--method catrs needs --catrs-teacher, a run folder of a network for the same images "
            "(published: of --method gaussian at sigma 0.25), got none; train one first, as in "
            f"'drf-fast train --method gaussian --sigma 0.25 --data {config.data} --out runs/G'"
        )
    path = checkpoint.locate(config.catrs_teacher)
    saved = checkpoint.load(path)
    got = tuple(saved["image_shape"]), saved["num_classes"]
    if got != (tuple(image_shape), num_classes):
        raise InputError(
            f"--catrs-teacher {config.catrs_teacher} must classify images of shape "
            f"{tuple(image_shape)} into {num_classes} classes, as --data {config.data} has them, "
            f"got {got[0]} and {got[1]}; pass a network that was trained on them"
        )
    if sha256 not in (None, saved["sha256"]):
        raise InputError(
            f"--catrs-teacher {config.catrs_teacher} is another network than the run was started "
            f"with: expected SHA-256 {sha256}, got {saved['sha256']}; pass that one, or start anew "
            "with --force"
        )
    if names_code(saved["arch"]) and config.arch != saved["arch"]:
        raise InputError(
            f"--catrs-teacher {config.catrs_teacher} is of a network of your own, whose code runs "
            f"only where --arch names it: expected a teacher of --arch {config.arch} or of a "
            f"built-in network, got one of {saved['arch']}; train such a teacher"
        )
    network = checkpoint.build_model(saved, path, config.arch).to(device)
    return Teacher(network.eval(), float(saved["config"]["sigma"]), saved["sha256"])


def attach(run: Run) -> None:
    """Set ``run.smoothed``: count the teacher's votes or, without a teacher, read the saved file.

    Raises:
        InputError: the file in the folder is damaged or cannot be written.
    """
    if run.config.method != "catrs":
        return
    path = run.folder / run_files.TEACHER_VOTES
    shape = len(run.train_set), run.train_set.num_classes
    if run.teacher is None:
        run.smoothed = torch.zeros(shape, device=run.device)
        if processes.rank() == 0:
            run.smoothed.copy_(torch.from_numpy(_read(path, shape)))
        processes.all_reduce_sum(run.smoothed)
        return
    run.smoothed = _count_votes(run, run.teacher).div(run.config.catrs_n).float()
    if processes.rank() == 0:
        with atomic_file(path) as file:
            np.save(file, run.smoothed.cpu().numpy(), allow_pickle=False)


def attach_placeholder(run: Run) -> float:
    """Set ``run.smoothed`` to a uniform placeholder; return the seconds that voting would take."""
    if run.config.method != "catrs":
        return 0.0
    shape = len(run.train_set), run.train_set.num_classes
    run.smoothed = torch.full(shape, 1 / shape[1], device=run.device)
    if run.teacher is None:
        return 0.0
    smoothed = _smoothed_teacher(run, run.teacher)
    x = run.train_set.float_images([0]).to(run.device)
    rate = smoothed.rate(x, smoothed.batch_size(x)) * processes.count()
    return shape[0] * run.config.catrs_n / rate


def _smoothed_teacher(run: Run, teacher: Teacher) -> SmoothedClassifier:
    """The teacher as a smoothed classifier.

    Its precision, memory format and batch size are not measured: a run with the same settings must
    count the same votes.
    """
    rows = min(_ROWS[run.device.type], _PIXELS // math.prod(run.train_set.image_shape))
    return SmoothedClassifier(
        teacher.network,
        run.train_set.num_classes,
        teacher.sigma,
        precision="fp32",
        memory_format=run.config.memory_format,
        batch_size=max(1, rows),
        seed=noise_key(run.config.seed, TEACHER),
    )


def _count_votes(run: Run, teacher: Teacher) -> torch.Tensor:
    """(N, K) int64: the teacher's votes on noisy copies of each training image."""
    copies, smoothed = run.config.catrs_n, _smoothed_teacher(run, teacher)
    shape = len(run.train_set), run.train_set.num_classes
    votes = torch.zeros(shape, dtype=torch.int64, device=run.device)
    images_per_batch = min(_VOTES // copies, _PIXELS // math.prod(run.train_set.image_shape))
    parts = data.batches(run.train_set, max(1, images_per_batch), shuffle_seed=None, epoch=0)
    with Tracker("smoothed predictions", shape[0], quiet=processes.rank() > 0) as tracker:
        started, done = time.perf_counter(), 0
        for number, (x, _, ids) in enumerate(parts):
            if number % processes.count() == processes.rank():
                x, ids = x.to(run.device), ids.to(run.device)
                votes[ids] = smoothed.votes(x, copies, image_ids=ids).to(run.device)
            done += len(ids)
            rate = done * copies / (time.perf_counter() - started)
            tracker.advance(len(ids), f"{rate:,.0f} samples/s")
    processes.all_reduce_sum(votes)
    return votes


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray:
    expected = "the smoothed predictions that the run was started with"
    remedy = "delete the file, and --resume counts them again"
    content = read_file(path, expected, remedy)
    try:
        predictions = read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:  # a damaged file
        raise InputError(
            f"cannot read {path}: expected {expected}, got {type(error).__name__}; {remedy}"
        ) from error
    if predictions.shape != shape or predictions.dtype != np.float32:
        raise InputError(
            f"{path}: expected float32 smoothed predictions of shape {shape}, got "
            f"{predictions.dtype} {predictions.shape}; {remedy}"
        )
    return predictions
