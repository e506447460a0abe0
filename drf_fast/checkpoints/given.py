"""The network argument of a command: a checkpoint of ours or of another program, or the user's own
code of a network, with a checkpoint of any origin or with weights that the code loads itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from drf_fast import models
from drf_fast.checkpoints import first_layer, fitting
from drf_fast.checkpoints import ours as checkpoint
from drf_fast.checkpoints.checksum import content_sha256
from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.models.normalize import normalize_layer


def read(path: Path | None, arch: str | None, normalize: str | None) -> dict[str, Any]:
    """As ``checkpoint.load_any``, and without a file where ``arch`` names code.

    Returns:
        What ``load_any`` returns; if ``checkpoint.CONTENT`` is among the keys, ``network`` has to
        be called once the shape of the images is known.

    Raises:
        InputError: as ``load_any``; neither a file nor code.
    """
    if path is not None:
        return checkpoint.load_any(path, arch, normalize)
    if arch is None or not names_code(arch):
        got = "neither" if arch is None else f"--arch {arch} alone, whose weights are random"
        raise InputError(
            "no network given: expected a run folder or a checkpoint, or --arch "
            "package.module:factory of a network that comes with its weights, got "
            f"{got}; pass the path first, as in 'drf-fast certify runs/NAME'"
        )
    return checkpoint.pending(None, arch, normalize, method_label=arch)


def network(
    saved: dict[str, Any], path: Path | None, num_classes: int, image_shape: tuple[int, ...]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the user's own code, with its weights, for these images.

    Args:
        saved: what ``read`` returned, with ``checkpoint.CONTENT``.
        path: the checkpoint, if there is one.
        num_classes: K.
        image_shape: (C, H, W).

    Returns:
        The network, and ``saved`` completed: the model, its hash if there is no file, the first
        layer, notes.

    Raises:
        InputError: code that makes no network for these images, weights that do not fit, or no file
            and random weights.
    """
    arch, requested = saved["arch"], saved["config"]["normalize"]
    if path is None:
        model = _build_with_weights(arch, num_classes, image_shape)
        layer, notes = normalize_layer(requested or "none", image_shape[0]), list(saved["notes"])
        name, assumed = requested or "none", None
    else:
        model = models.build(arch, num_classes, image_shape)
        content = saved[checkpoint.CONTENT]
        fit = fitting.load_into(model, content, path, f"--arch {arch}", num_classes)
        if fit.has_layer or requested is not None:
            name, layer, assumed = first_layer.choose(
                first_layer.usual_for(image_shape),
                image_shape[0],
                requested,
                fit.layer,
                fit.has_layer,
                path,
            )
        else:
            name, layer, assumed = "none", None, None
        notes = [*saved["notes"], *fit.notes]
    model = model if layer is None else nn.Sequential(layer, model)
    weights = model.state_dict()
    return model, {
        "arch": arch,
        "num_classes": num_classes,
        "image_shape": list(image_shape),
        "model": weights,
        "config": {**saved["config"], "normalize": name},
        "notes": notes if assumed is None else [*notes, f"warning: {assumed}"],
        "sha256": saved["sha256"] or content_sha256(dict(weights)),
    }


def _build_with_weights(arch: str, num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """The network of the factory; called twice, since a network with random weights is refused."""
    networks = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(models.build(arch, num_classes, image_shape))
    first, second = (content_sha256(dict(model.state_dict())) for model in networks)
    if first != second:
        raise InputError(
            f"--arch {arch} without a checkpoint: expected a network that comes with its weights, "
            "got other ones at each call, drawn at random; pass the checkpoint that holds them "
            f"before --arch {arch}, or load them in the factory"
        )
    return networks[0]
