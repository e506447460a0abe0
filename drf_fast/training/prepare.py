"""Data, network, optimizer and ball of a run."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drf_fast import data
from drf_fast.balls import HardBall, SoftBall
from drf_fast.config import run_files
from drf_fast.config.durations import seconds
from drf_fast.config.options import TrainConfig
from drf_fast.config.training import (
    MEASURED,
    check,
    check_epsilon,
    images_of_a_step,
    joins_last_batch,
    method_label,
    refuse_other_settings,
    trained,
    uses_adversary,
    uses_drf,
    was_left_out,
)
from drf_fast.config.values import names_code, to_dict
from drf_fast.errors import InputError
from drf_fast.functional import noise_key
from drf_fast.models import faster, normalize
from drf_fast.runtime import machine, processes
from drf_fast.runtime.randomness import INITIAL_WEIGHTS
from drf_fast.runtime.text import number_of, one_line
from drf_fast.training import dry_run, initial, state, teacher
from drf_fast.training.graphs import GraphedSteps
from drf_fast.training.run import Run, Totals, announce
from drf_fast.training.step import descend

# Of all processes, though the network does not depend on them: they decide what is done together.
_OF_ALL = ("max_steps", "accumulate", "certify_images", "certify_n")


def prepare(config: TrainConfig, folder: Path) -> Run:
    """Build data, network, optimizer and ball; restore the checkpoint in the folder if resuming."""
    check(config, processes.count())
    device = machine.pick_device(config.device)
    processes.start(device, seconds(config.timeout, "timeout"))
    asked, saved = config, processes.broadcast(state.read(folder) if config.resume else None)
    train_set, test_set = _data(config, saved)
    config = _with_usual_layer(config, train_set.image_shape[0])
    _refuse_other_processes(config, train_set.fingerprint, test_set.fingerprint)
    if saved:
        if asked.normalize == "auto":
            layer = saved["config"].get("normalize", config.normalize)
            config = dataclasses.replace(config, normalize=layer)
        refuse_other_settings(config, saved["config"], train_set.fingerprint, folder)
        config = _with_saved_choices(config, saved["config"])
    if config.threads != "auto":
        machine.set_threads(config.threads)
    shape = _common_shape(config, train_set, test_set)
    model, init_sha256 = _network(config, saved, train_set.num_classes, shape)
    parts = config.accumulate * processes.count()
    rows = -(-min(images_of_a_step(config), len(train_set)) // parts) * config.num_samples
    if config.dry_run:
        dry_run.show_settings(dataclasses.replace(config, threads=torch.get_num_threads()))
    config, placed = _choose_memory_format(config, model, device, shape, rows)
    network, left_out = placed.network, dict(placed.left_out)
    if config.compile and not (saved and was_left_out(saved["config"], "compile")):
        network = _try_compile(network, shape, device, config, left_out)
    if joins_last_batch(config, len(train_set), processes.count()):
        announce("the last batch of an epoch is too small for batch norm and joins the one before")
    config = dataclasses.replace(
        config, memory_format=placed.memory_format, threads=torch.get_num_threads()
    )
    graphed = config.cuda_graph and device.type == "cuda" and processes.count() == 1
    run = Run(
        config=config,
        folder=folder,
        train_set=train_set,
        test_set=test_set,
        device=device,
        model=model,
        network=network,
        optimizer=_make_optimizer(config, model),
        ball=_make_ball(config),
        totals=Totals.empty(device),
        graphs=GraphedSteps(descend) if graphed and not config.compile else None,
        init_sha256=init_sha256,
        left_out=left_out,
    )
    if saved:
        state.restore(run, saved)
    _attach_teacher(run, saved)
    _announce(run)
    return run


def _with_usual_layer(config: TrainConfig, channels: int) -> TrainConfig:
    """With the first layer that ``--normalize auto`` means for images of so many channels."""
    if config.normalize != "auto":
        return config
    # A network of the user's own normalises inside, if at all.
    layer = "none" if names_code(config.arch) else normalize.for_data(config.data, channels)
    return dataclasses.replace(config, normalize=layer)


def _data(config: TrainConfig, saved: dict[str, Any] | None) -> tuple[data.Dataset, data.Dataset]:
    """Training and test images, with the channels that they had; a dry run downloads nothing."""
    load = partial(data.load, config.data, data_dir=config.data_dir, download=not config.dry_run)
    channels = saved["image_shape"][0] if saved else None
    train_set = load("train", limit=config.train_images, channels=channels)
    return train_set, load("test", channels=train_set.image_shape[0])


def _with_saved_choices(config: TrainConfig, saved: dict[str, Any]) -> TrainConfig:
    """With what the run measured, and the precision in which it could run."""
    known = {name: saved.get(name, "auto") for name in MEASURED}
    if was_left_out(saved, config.precision):
        known["precision"] = saved["precision"]
    return dataclasses.replace(config, **known)


def _common_shape(
    config: TrainConfig, train_set: data.Dataset, test_set: data.Dataset
) -> tuple[int, ...]:
    """The shape of all images, with which epsilon is compared."""
    shape = train_set.image_shape
    check_epsilon(config.epsilon, shape)
    if test_set.image_shape != shape:
        raise InputError(
            f"{config.data_dir} has training images of shape {shape} and test images of shape "
            f"{test_set.image_shape}: expected one shape; resize them"
        )
    return shape


def _network(
    config: TrainConfig, saved: dict[str, Any] | None, num_classes: int, shape: tuple[int, ...]
) -> tuple[torch.nn.Module, str | None]:
    """The network before its first step, and the hash of the file of its weights."""
    torch.manual_seed(noise_key(config.seed, INITIAL_WEIGHTS) % 2**63)
    # A resumed run takes its weights from the checkpoint, not from --init.
    fresh = dataclasses.replace(config, init=None) if saved else config
    model, init_sha256 = initial.network(fresh, num_classes, shape)
    if saved:
        return model, saved["config"].get("init_sha256")
    if processes.count() > 1:  # code of the user's may draw weights from a generator of its own
        model.load_state_dict(processes.broadcast(model.state_dict()))
    return model, init_sha256


def _attach_teacher(run: Run, saved: dict[str, Any] | None) -> None:
    """Load the teacher of catrs, unless its votes have been counted."""
    has_votes = bool(saved) and (run.folder / run_files.TEACHER_VOTES).exists()
    has_votes = processes.broadcast(has_votes)
    run.teacher_sha256 = saved["config"].get("teacher_sha256") if saved else None
    if run.config.method == "catrs" and not has_votes:
        classes, shape = run.train_set.num_classes, run.train_set.image_shape
        run.teacher = teacher.load(run.config, classes, shape, run.device, run.teacher_sha256)
        run.teacher_sha256 = run.teacher.sha256


def _announce(run: Run) -> None:
    """Say what is trained, on what and how."""
    config, count = run.config, processes.count()
    several = f", {count} processes" if count > 1 else ""
    announce(
        f"training {config.arch} with {method_label(config)} at sigma {config.sigma:g} on "
        f"{number_of(len(run.train_set), 'image')} of {config.data}, m {config.num_samples}"
        f"{f', T {config.steps}' if uses_adversary(config) else ''}"
        f"{f', {run.ball}' if run.ball is not None else ''}; {number_of(config.epochs, 'epoch')} "
        f"on {run.device} in {config.precision}, {config.memory_format}{several}"
    )


def _refuse_other_processes(config: TrainConfig, training: str, test: str) -> None:
    """Refuse settings or images that are not those of process 0."""
    settings = to_dict(config)
    mine = {
        **trained(settings),
        **{name: settings[name] for name in _OF_ALL},
        "training images": training,
        "test images": test,
    }
    processes.refuse_differences(mine, "train with other settings or images")


def _choose_memory_format(
    config: TrainConfig,
    model: torch.nn.Module,
    device: torch.device,
    shape: tuple[int, ...],
    rows: int,
) -> tuple[TrainConfig, machine.Placed]:
    """The network in process 0's choice of memory format; in fp32 if it fails in bf16."""
    # Our own networks call the fused operations themselves; networks of users are traced for them.
    place = faster.place if names_code(config.arch) and not config.compile else machine.place
    rejected: dict[str, str] = {}
    try:
        placed = place(model, device, config.memory_format, config.precision, shape, rows)
    except InputError as error:
        if config.precision == "fp32":
            raise
        announce(
            f"the network cannot be run in {config.precision} and is trained in fp32 ({error})"
        )
        rejected[config.precision] = str(error)
        config = dataclasses.replace(config, precision="fp32")
        placed = place(model, device, config.memory_format, "fp32", shape, rows)
    shared = processes.broadcast(placed.memory_format)
    if shared != placed.memory_format:
        placed = place(model, device, shared, config.precision, shape, rows)
    return config, placed._replace(left_out={**rejected, **placed.left_out})


def _try_compile(
    network: torch.nn.Module,
    shape: tuple[int, ...],
    device: torch.device,
    config: TrainConfig,
    left_out: dict[str, str],
) -> torch.nn.Module:
    """The network through torch.compile; uncompiled, with a message, if that fails."""
    if not names_code(config.arch):
        return torch.compile(network)  # type: ignore[return-value]
    compiled: Any = torch.compile(network)
    try:
        with machine.autocast(device, config.precision):
            machine.seconds(compiled, torch.zeros((2, *shape), device=device))
    except Exception as error:  # whatever a network of the user's own does
        left_out["compile"] = one_line(error)
        announce(f"the network cannot be compiled and is trained uncompiled ({one_line(error)})")
        return network
    return compiled


def _make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _make_ball(config: TrainConfig) -> HardBall | SoftBall | None:
    if uses_drf(config):
        return SoftBall(
            config.epsilon,
            lambda0=config.lambda0,
            lambda_lr=config.lambda_lr,
            kappa=config.kappa,
            form=config.form,
            lambda_every=config.lambda_every,
            tau=config.tau,
        )
    if not uses_adversary(config) or config.method == "smoothmix":  # smoothmix: unbounded ascent
        return None
    return HardBall(config.epsilon)
