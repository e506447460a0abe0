"""Finding the normalising first layer that a foreign checkpoint was trained with.

Published networks are ``nn.Sequential(normalize_layer, network)``, and most state dicts lack the
constants of the layer. Two repositories use the same names for different layers: smoothing
normalises, smoothing-adversarial subtracts the mean only. A wrong guess does not invalidate a
certificate, which holds for the network as it is run, but that network abstains nearly everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drf_fast import models
from drf_fast.errors import InputError
from drf_fast.models.normalize import Normalize, normalize_layer
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.modules import dtype_of

State = dict[str, torch.Tensor]

_WELL = 1.0  # a misfit up to this is that of other images or somewhat other noise
_EARLY = 10**6  # parameters before the first batch norm, at most: a layer or two
_AS_WELL = 0.5  # a difference of misfits up to this tells nothing: without the mean it is 0.7

_CONSTANT_NAMES = {
    "mean": "mean", "means": "mean", "mu": "mean", "_mean": "mean",
    "std": "std", "stds": "std", "sds": "std", "sigma": "std", "_std": "std",
}  # fmt: skip


def split(state: State, path: Path) -> tuple[State, Normalize | None, bool]:
    """The network's part of ``state``, its first layer if the constants are in it, and whether it
    has a first layer at all.

    Raises:
        InputError: the first layer is not a normalisation.
    """
    if {key.split(".")[0] for key in state} not in ({"1"}, {"0", "1"}):
        return state, None, False
    network = {key[2:]: value for key, value in state.items() if key.startswith("1.")}
    first = {key[2:]: value for key, value in state.items() if key.startswith("0.")}
    if not first:
        return network, None, True
    constants = {
        _CONSTANT_NAMES[key]: value.detach().flatten().tolist()
        for key, value in first.items()
        if key in _CONSTANT_NAMES and value.numel() <= 4 and value.is_floating_point()
    }
    mean = constants.get("mean", [])
    std = constants.get("std", [1.0] * len(mean))
    usable = all(math.isfinite(value) for value in mean + std) and all(s > 0 for s in std)
    if len(constants) != len(first) or not mean or len(mean) != len(std) or not usable:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in [*first.items()][:3])
        raise InputError(
            f"cannot use the first layer in {path}: expected the finite mean and the std above 0 "
            f"of each channel, got {found}; save the network without it and pass --normalize"
        )
    return network, Normalize(mean, std), True


def choose(
    usual: str,
    channels: int,
    requested: str | None,
    in_file: Normalize | None,
    has_layer: bool,
    path: Path,
) -> tuple[str, Normalize | None, str | None]:
    """The layer requested, else the one in the file, else the usual one for such a file.

    ``usual`` is what ``usual_for`` returns for the images.

    Returns:
        Its name ("file" if the file has its constants), the layer, and a sentence about what was
        assumed, or None.

    Raises:
        InputError: an unknown name, constants of other channels, a name that contradicts the file.
    """
    if in_file is not None:
        if len(in_file.mean) != channels:
            raise InputError(
                f"cannot use the first layer in {path}: expected constants of {channels} channels, "
                f"got {len(in_file.mean)}; pass another file"
            )
        if requested is not None and not _same(normalize_layer(requested, channels), in_file):
            raise InputError(
                f"{path} has a first layer of mean {_numbers(in_file.mean)} and std "
                f"{_numbers(in_file.std)}, got --normalize {requested}; leave the flag out"
            )
        return "file", in_file, None
    if requested is not None:
        return requested, normalize_layer(requested, channels), None
    if channels != 3:  # the first layer of published MNIST networks is the identity
        return "none", None, None
    if has_layer:
        return (
            usual,
            normalize_layer(usual, channels),
            f"{path.name} has a first layer without its constants: assumed --normalize {usual} "
            f"(smoothing-adversarial subtracts the mean only: --normalize {usual}-center)",
        )
    return (
        "none",
        None,
        f"{path.name} has no first layer: assumed --normalize none (if it was trained behind one: "
        f"--normalize {usual})",
    )


def attach(network: State, layer: Normalize | None) -> State:
    """The state dict of ``nn.Sequential(layer, network)``, or of the network if layer is None."""
    if layer is None:
        return network
    constants = {f"0.{key}": value for key, value in layer.state_dict().items()}
    return {**constants, **{f"1.{key}": value for key, value in network.items()}}


def pick(saved: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """``saved`` with the first layer that fits its weights best, if it was only assumed.

    The running statistics of the first batch norm are those of its input in training. With a wrong
    first layer the input has others: between "cifar10" and "cifar10-center" the variance differs by
    a factor of 25.

    Args:
        saved: what ``drf_fast.checkpoints.foreign.convert`` returned.
        rows: (B, C, H, W) images of the data set **with** the noise of training; 256 are enough.

    Returns:
        ``saved`` itself if nothing was assumed or the network has no batch norm.
    """
    if saved["assumed"] is None:
        return saved
    network, _, _ = split(saved["model"], Path())
    shape = tuple(saved["image_shape"])
    misfits = {}
    for name in _choices(shape):
        model = models.build(saved["arch"], saved["num_classes"], shape, name)
        model.load_state_dict(attach(network, normalize_layer(name, shape[0])))
        misfits[name] = _misfit(model, rows)
    best = min(misfits, key=lambda name: misfits[name])
    if misfits[best] == math.inf:
        return saved
    return {
        **saved,
        "model": attach(network, normalize_layer(best, shape[0])),
        "config": {**saved["config"], "normalize": best},
        "assumed": (
            f"the first layer is taken to be --normalize {best}: it fits the statistics of the "
            f"first batch norm best ({_shown(misfits)})"
        )
        + ("; none fits well: check the data set and --sigma" if misfits[best] > _WELL else ""),
    }


def advice(
    model: nn.Module, image_shape: tuple[int, ...], rows: Callable[[], torch.Tensor]
) -> str | None:
    """What to say of a network of the user's own, in front of which no layer was asked for.

    Args:
        model: the network, which may normalise by itself; on the CPU, and left as it is.
        image_shape: (C, H, W); only of images of three channels there is anything to say.
        rows: makes the rows that ``pick`` takes.

    Returns:
        A sentence; None where the network's statistics show that it needs no layer.
    """
    if image_shape[0] != 3:
        return None
    model = getattr(model, "_orig_mod", model)  # compiled, it would be compiled for this alone
    unknown = (
        "no normalising layer is put before the network; if it was trained behind one that is not "
        f"part of its code: --normalize {_choices(image_shape)[0]}"
    )
    if not _begins_with_statistics(model):
        return unknown
    misfits, noisy = {}, rows()
    for name in _choices(image_shape):
        layer = normalize_layer(name, image_shape[0])
        with frozen(model), torch.random.fork_rng(devices=[]):
            try:
                whole = model if layer is None else nn.Sequential(layer, model)
                misfits[name] = _misfit(whole, noisy)
            except Exception:  # of a network of the user's own, which is told when it runs
                misfits[name] = math.inf
    best = min(misfits, key=lambda name: misfits[name])
    if misfits["none"] <= min(_WELL, misfits[best] + _AS_WELL):
        return None
    if misfits[best] <= _WELL:
        return (
            f"warning: no normalising layer is put before the network, but --normalize {best} fits "
            f"the statistics of its first batch norm better ({_shown(misfits)})"
        )
    return unknown


def _begins_with_statistics(model: nn.Module) -> bool:
    """Whether a batch norm lies so early that it takes no time to reach: not behind a denoiser."""
    parameters = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            return True
        parameters += sum(own.numel() for own in module.parameters(recurse=False))
        if parameters > _EARLY:
            return False
    return False


def _choices(image_shape: tuple[int, ...]) -> tuple[str, str, str]:
    """The layers that a network may have been trained behind, the usual one first."""
    usual = usual_for(image_shape)
    return usual, f"{usual}-center", "none"


def _shown(misfits: dict[str, float]) -> str:
    return f"misfit: {', '.join(f'{name} {misfit:.2f}' for name, misfit in misfits.items())}"


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input is wanted: the rest may take minutes."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows


@torch.no_grad()
def _misfit(model: nn.Module, rows: torch.Tensor) -> float:
    """The mismatch between input and running statistics of the first batch norm; inf without one.

    The median over channels of |log of the ratio of variances|, plus the median of the distance of
    the means in standard deviations.
    """
    norm = next((module for module in model.modules() if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or norm.running_mean is None or norm.running_var is None:
        return math.inf

    def stop(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        raise _ReachedError(args[0])

    hook = norm.register_forward_pre_hook(stop)
    try:
        model.eval()(rows.to("cpu", dtype_of(model, torch.float32)))
    except _ReachedError as reached:
        var, mean = torch.var_mean(reached.rows, (0, 2, 3))
    else:
        return math.inf  # the network does not use it
    finally:
        hook.remove()
    training_var = norm.running_var.clamp(min=1e-30)  # 0 if a channel never varied
    scale = (var.clamp(min=1e-30) / training_var).log().abs()
    shift = (mean - norm.running_mean).abs() / training_var.sqrt()
    return float(scale.median() + shift.median())


def usual_for(image_shape: tuple[int, ...]) -> str:
    """The constants with which published networks for images of this shape are trained."""
    return "imagenet" if image_shape[-1] >= 64 else "cifar10"


def _same(one: Normalize | None, other: Normalize) -> bool:
    one = one or Normalize([0.0] * len(other.mean), [1.0] * len(other.mean))
    return torch.allclose(one.mean, other.mean) and torch.allclose(one.std, other.std)


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())
