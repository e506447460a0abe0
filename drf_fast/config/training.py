"""What the settings of a training run mean together; nothing here imports torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from drf_fast.config import methods, tags
from drf_fast.config.durations import seconds
from drf_fast.config.look import AttackConfig
from drf_fast.config.options import CertifyConfig, SweepConfig, TrainConfig
from drf_fast.config.ranges import check_ranges
from drf_fast.config.tags import Role, Tag
from drf_fast.config.values import to_dict
from drf_fast.errors import InputError

# Of these a resumed run takes what was recorded, for "auto".
MEASURED = tags.having(TrainConfig, Tag.MEASURED)
_KEPT_ON_RESUME = frozenset(tags.having(TrainConfig, Role.RESULT, Role.SPEED)) - frozenset(
    tags.having(TrainConfig, Tag.RESUMES)
)
FREE_ON_RESUME = frozenset(tags.of(TrainConfig)) - _KEPT_ON_RESUME
# What a checkpoint or a log may have recorded that did not shape the network. Of --init and of
# --catrs-teacher it is the content that did, recorded by its hash, and not the path. What is left
# out may differ from machine to machine (a CUDA graph); the precision that was used is recorded.
NOT_TRAINED = frozenset(tags.of(TrainConfig)) - frozenset(tags.having(TrainConfig, Role.RESULT)) | {
    "init",
    "catrs_teacher",
    "method_label",
    "left_out",
}

_DRF_FLAGS = frozenset(tags.having(TrainConfig, Tag.SOFT_BALL))
_ADVERSARY_FLAGS = frozenset(tags.having(TrainConfig, Tag.ADVERSARY))
_MOST_EPSILON = 64.0  # published strengths from here on are counted in 0..255
_MOST_SIGMA = 4  # larger ones are counted in 0..255


def trained(recorded: dict[str, Any]) -> dict[str, Any]:
    """Of recorded settings those that shaped the network; equal ones are one training."""
    return {key: value for key, value in recorded.items() if key not in NOT_TRAINED}


def uses_adversary(config: TrainConfig) -> bool:
    """Whether this run trains on adversarial images."""
    return methods.uses_adversary(config.method) and config.steps > 0


def uses_drf(config: TrainConfig) -> bool:
    """Whether this run's adversary has DRF's soft ball."""
    return config.drf and uses_adversary(config)


def without_effect(config: TrainConfig) -> dict[str, str]:
    """The settings that this run's method ignores, and why."""
    reasons: dict[str, str] = {}
    if not uses_adversary(config):
        flags = _ADVERSARY_FLAGS | _DRF_FLAGS
        if methods.uses_adversary(config.method):
            flags = flags - {"steps"}  # --steps 0 is what turned the adversary off
        reasons |= dict.fromkeys(flags, f"{config.method} trains without an adversary here")
    elif not config.drf:
        reason = "part of the soft ball, which --no-drf (or the recipe) turns off"
        reasons |= dict.fromkeys(_DRF_FLAGS, reason)
        if config.method == "smoothmix":
            reason = "without the soft ball its adversary has no ball"
            reasons |= dict.fromkeys(("epsilon", "warmup_epochs"), reason)
    for method, flags in methods.FLAGS.items():
        if method != config.method:
            reasons |= dict.fromkeys(flags, f"part of --method {method} alone")
    return reasons


def method_label(config: TrainConfig) -> str:
    """The name of a row in the paper's tables: smoothadv, smoothadv+drf ..."""
    return config.method + ("+drf" if uses_drf(config) else "")


def images_of_a_step(config: TrainConfig) -> int:
    """How many images an optimiser step sees."""
    return config.batch_size // (config.num_samples if config.split_batches else 1)


def steps_of_an_epoch(config: TrainConfig, images: int, processes: int = 1) -> int:
    """How many optimiser steps show all the images once."""
    size = images_of_a_step(config)
    steps = math.ceil(images / size)
    return steps - joins_last_batch(config, images, processes)


def smallest_batch(config: TrainConfig, processes: int = 1) -> int:
    """Images below which an epoch's last batch joins the one before: batch norm needs two rows."""
    parts = config.accumulate * processes
    return min(2 * parts, images_of_a_step(config)) if config.num_samples == 1 else 1


def joins_last_batch(config: TrainConfig, images: int, processes: int = 1) -> bool:
    """Whether an epoch's last batch is too small to stand alone."""
    size = images_of_a_step(config)
    return images > size and 0 < images % size < smallest_batch(config, processes)


def run_folder(config: TrainConfig) -> Path:
    """Where the run lives: ``--out``, or a name of data, method, sigma and seed in ``runs/``."""
    name = f"{config.data}-{method_label(config)}-s{config.sigma:g}-seed{config.seed}"
    return config.out or Path("runs", name)


def check_sigma(sigma: float) -> None:
    """Refuse a noise level in other units, and one that float32 pixels cannot carry.

    Raises:
        InputError: says what was expected and what came.
    """
    if _MOST_SIGMA < sigma < math.inf:
        raise InputError(
            f"--sigma is in pixel units, of images in [0, 1]: expected at most {_MOST_SIGMA}, got "
            f"{sigma:g}; a noise level counted in 0..255 is divided by 255: --sigma "
            f"{sigma / 255:.4g}"
        )
    if not 1e-6 <= sigma <= _MOST_SIGMA:
        raise InputError(
            f"--sigma must be a finite number above 0, from 1e-6 to {_MOST_SIGMA} (pixel units, "
            f"images in [0, 1]), got {sigma}"
        )


def check_epsilon(
    epsilon: float, image_shape: tuple[int, ...] | None = None, flag: str = "--epsilon"
) -> None:
    """Refuse a strength in other units, and one beyond the diameter of the image space.

    Raises:
        InputError: says what was expected and what came.
    """
    diameter = math.inf if image_shape is None else math.sqrt(math.prod(image_shape))
    most = min(_MOST_EPSILON, diameter)
    if epsilon > most or epsilon == _MOST_EPSILON:
        of = "" if image_shape is None else f" (images of shape {tuple(image_shape)})"
        limit = f"{'less than' if most == _MOST_EPSILON else 'at most'} {most:.4g}{of}"
        raise InputError(
            f"{flag} is an L2 distance in pixel units, of images in [0, 1]: expected {limit}, got "
            f"{epsilon:g}; published programs divide theirs by 256: {flag} {epsilon / 256:.4g}"
        )


def check_resume(
    config: TrainConfig | CertifyConfig | AttackConfig | SweepConfig, what: str
) -> None:
    """Refuse to continue and to replace ``what`` at once.

    Raises:
        InputError: both flags are given.
    """
    if config.resume and config.force:
        raise InputError(f"--resume continues a {what} and --force replaces it: pass one of them")


def check(config: TrainConfig, processes: int = 1) -> None:
    """Refuse settings out of range, one sentence each.

    Args:
        config: the settings.
        processes: how many of them divide the work.

    Raises:
        InputError: names the flag, what was expected and what came.
    """
    check_ranges(config)
    seconds(config.timeout, "timeout")
    check_sigma(config.sigma)
    check_epsilon(config.epsilon)
    if config.momentum >= 1:
        raise InputError(f"--momentum must be below 1, got {config.momentum}")
    if config.tau is not None and config.form != "udr":
        raise InputError(
            f"--tau belongs to --form udr, got --form {config.form}; leave it out, or choose udr"
        )
    if any(not 0 < drop < 1 for drop in config.lr_drops):
        raise InputError(
            f"--lr-drops must be fractions between 0 and 1, got {list(config.lr_drops)}"
        )
    if config.nesterov and config.momentum == 0:
        raise InputError("--nesterov needs --momentum above 0; pass --no-nesterov")
    check_resume(config, "run")
    _check_method(config)
    _check_batch(config, processes)


def _check_method(config: TrainConfig) -> None:
    methods.uses_adversary(config.method)
    if config.method == "smoothadv" and config.steps == 0:
        raise InputError("--method smoothadv needs --steps of 1 or more; 0 is --method gaussian")
    if config.method == "smoothmix" and config.steps <= config.mix_step:
        raise InputError(
            f"--method smoothmix needs --steps above --mix-step {config.mix_step}, got "
            f"{config.steps}"
        )
    if config.macer_after_drop and not config.lr_drops:
        raise InputError(
            "--macer-after-drop waits for the first of --lr-drops, got none; name one, or pass "
            "--no-macer-after-drop"
        )


def _check_batch(config: TrainConfig, processes: int) -> None:
    if config.split_batches and config.batch_size % config.num_samples:
        raise InputError(
            f"--split-batches cuts --batch-size {config.batch_size} into --num-samples "
            f"{config.num_samples} equal parts: expected a multiple of it"
        )
    if config.accumulate > images_of_a_step(config):
        raise InputError(
            f"--accumulate must be at most the {images_of_a_step(config)} images of a step, got "
            f"{config.accumulate}"
        )
    divided = config.accumulate > 1 or processes > 1
    if divided and config.grad_norm == "batch" and uses_adversary(config):
        raise InputError(
            "--grad-norm batch needs the whole batch at once, got a batch in parts; leave out "
            "--accumulate and use one process, or choose --grad-norm image"
        )


def was_left_out(recorded: Any, form: str) -> bool:
    """Whether the run of ``recorded`` settings asked for ``form``, which its network refused."""
    return isinstance(recorded, dict) and form in (recorded.get("left_out") or {})


def refuse_other_settings(
    config: TrainConfig, saved: dict[str, Any], fingerprint: str, folder: Path
) -> None:
    """Compare with the settings and the images that the checkpoint in ``folder`` was trained with.

    Raises:
        InputError: names what differs.
    """
    mine = json.loads(json.dumps(to_dict(config)))  # tuples are lists in a file
    # A setting that did not exist then was not in use: it had what is now its default.
    then = json.loads(json.dumps({**to_dict(TrainConfig()), **saved}))
    other = [
        f"{key} (then {then[key]!r}, now {mine[key]!r})"
        for key in mine
        if key not in FREE_ON_RESUME
        and then[key] != mine[key]
        # Then it was not recorded, or now the recorded one is taken.
        and not (key in (*MEASURED, "normalize") and "auto" in (then[key], mine[key]))
        and not (key == "precision" and was_left_out(saved, mine[key]))
    ]
    if saved.get("fingerprint") not in (None, fingerprint):
        other.append("training images (the files hold others than then)")
    if other:
        raise InputError(
            f"cannot resume {folder}: expected the settings it was started with, got other "
            f"{', '.join(other)}; leave these flags out, or choose another --out"
        )
