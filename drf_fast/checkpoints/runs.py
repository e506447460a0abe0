"""Loading a training run in Python: its network and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from drf_fast.checkpoints import ours as checkpoint
from drf_fast.config.values import names_code
from drf_fast.errors import InputError
from drf_fast.models.normalize import normalize_layer


class TrainedRun(NamedTuple):
    """The result of a training run.

    Attributes:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits, on the CPU, in eval mode; its
            normalising first layer, if it has one, is inside.
        sigma: the noise level that it was trained at, in pixel units.
        num_classes: K.
        image_shape: (C, H, W).
        settings: all settings of the run by the names of the flags of ``drf-fast train``, including
            measured ones.
        path: the checkpoint.
        sha256: hash of the checkpoint, which certification logs record.
    """

    network: nn.Module
    sigma: float
    num_classes: int
    image_shape: tuple[int, ...]
    settings: dict[str, Any]
    path: Path
    sha256: str


def load_run(path: str | Path, network: nn.Module | None = None) -> TrainedRun:
    """The network of a run of ``drf-fast train``, with its weights, and the run's settings.

    The file is read without unpickling, and its checksum is verified. ::

        run = drf_fast.load_run("runs/mnist-mini-smoothadv+drf-s0.5-seed0")
        smoothed = drf_fast.SmoothedClassifier(run.network, run.num_classes, run.sigma)

    Args:
        path: the run folder, or a checkpoint in it.
        network: for a run of ``--arch package.module:factory`` the network that the factory makes,
            into which the weights are loaded: a file may not choose the code that is run.

    Returns:
        ``TrainedRun``: the network in eval mode on the CPU, and what it was trained with.

    Raises:
        InputError: no such file, a damaged one, one of another program, or a network that is
            missing or does not fit the weights.
    """
    file = checkpoint.locate(Path(path))
    saved = checkpoint.load(file)
    own = names_code(saved["arch"])
    if own and network is None:
        raise InputError(
            f"{file} is of a network of your own, which a checkpoint may not import: expected it "
            f"as network=, got none; pass what {saved['arch']} returns"
        )
    if network is None:
        network = checkpoint.build_model(saved, file)
    elif not isinstance(network, nn.Module):
        raise InputError(
            f"{file} needs the network itself: expected an nn.Module as network=, got a "
            f"{type(network).__name__}; pass what {saved['arch']} returns"
        )
    elif own:
        layer = normalize_layer(saved["config"].get("normalize", "none"), saved["image_shape"][0])
        network = network if layer is None else nn.Sequential(layer, network)
        checkpoint.load_weights(network, saved, file)
    else:
        raise InputError(
            f"{file} is of the architecture {saved['arch']}, which drf_fast builds itself: "
            "expected no network, got one; leave network= out"
        )
    return TrainedRun(
        network.eval(),
        saved["config"]["sigma"],
        saved["num_classes"],
        tuple(saved["image_shape"]),
        saved["config"],
        file,
        saved["sha256"],
    )
