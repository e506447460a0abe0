"""The network at the start of a run: fresh weights, or those of ``--init``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from drf_fast import models
from drf_fast.checkpoints import fitting, tensorfile
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config.options import TrainConfig
from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.models import normalize
from drf_fast.models.normalize import Normalize
from drf_fast.training.run import announce


def network(
    config: TrainConfig, num_classes: int, image_shape: tuple[int, ...]
) -> tuple[nn.Module, str | None]:
    """The network of ``--arch`` and ``--normalize``, and the hash of the ``--init`` file if given.

    Raises:
        InputError: as ``models.build``; a checkpoint that cannot be read, is of another network, or
            was trained behind another first layer.
    """
    if config.init is None:
        return models.build(config.arch, num_classes, image_shape, config.normalize), None
    path = checkpoint.locate(config.init)
    content, digest = tensorfile.read(path)
    ours = checkpoint.is_ours(content)
    if ours:
        content = checkpoint.checked(content, digest, path)
        _refuse_other_arch(config.arch, content["arch"], path)
    model = models.build(config.arch, num_classes, image_shape)
    weights = content["model"] if ours else content
    what = f"--arch {config.arch}"
    fit = fitting.load_into(model, weights, path, what, num_classes, new_head=True)
    layer = normalize.normalize_layer(config.normalize, image_shape[0])
    if fit.layer is not None or ours:
        _refuse_other_layer(config.normalize, layer, fit.layer, path)
    elif fit.has_layer:
        other = "; if not, pass --normalize" if config.normalize == "none" else ""
        announce(
            f"{path.name} has a first layer without its constants: assumed --normalize "
            f"{config.normalize}{other}"
        )
    elif layer is not None:
        announce(
            f"{path.name} has no first layer: --normalize {config.normalize} is put before it (if "
            "it was trained without one: --normalize none)"
        )
    for note in fit.notes:
        announce(note)
    announce(f"starting from the weights in {path}")
    return (model if layer is None else nn.Sequential(layer, model)), digest


def _refuse_other_arch(arch: str, saved_arch: str, path: Path) -> None:
    if arch != saved_arch and not names_code(arch) and not names_code(saved_arch):
        raise InputError(
            f"--init {path} holds the weights of {saved_arch}: expected the network to be trained, "
            f"{arch}; pass --arch {saved_arch}, or another checkpoint"
        )


def _refuse_other_layer(
    name: str, layer: Normalize | None, saved_layer: Normalize | None, path: Path
) -> None:
    """Refuse weights trained behind another normalising first layer: their input would differ."""
    got = normalize.value_of(saved_layer)
    if got != normalize.value_of(layer):
        raise InputError(
            f"--init {path} was trained behind another normalising first layer: expected that of "
            f"--normalize {name}, got {got}; pass --normalize {got}"
        )
