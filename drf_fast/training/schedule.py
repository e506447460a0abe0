"""Schedules: values that change from epoch to epoch, functions of settings and epoch (from 0)."""

from __future__ import annotations

from drf_fast.config.options import TrainConfig
from drf_fast.training.methods.common import MethodOptions


def drops(config: TrainConfig, epoch: int) -> int:
    """The number of times that the learning rate has been divided by 10, 0 in the first epoch."""
    shifted = epoch - config.late_drop
    first = [max(1, round(drop * config.epochs)) for drop in config.lr_drops]
    return sum(shifted >= dropped for dropped in first)


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch."""
    return config.lr * 0.1 ** drops(config, epoch)


def epsilon(config: TrainConfig, epoch: int) -> float:
    """The radius of the adversary's ball, raised linearly during the warm-up."""
    return config.epsilon * _warm_up_factor(config.warmup_epochs, epoch)


def options(config: TrainConfig, epoch: int) -> MethodOptions:
    """The hyperparameters of the method in an epoch."""
    warm = _warm_up_factor(config.mix_warmup, epoch)
    waits = config.macer_after_drop and drops(config, epoch) == 0
    of_epoch = {
        "mix_eta": config.mix_eta * warm,
        "mix_radius": config.mix_alpha * warm,
        "macer_lam": 0.0 if waits else config.macer_lam,
    }
    return MethodOptions(**{**vars(config), **of_epoch})


def _warm_up_factor(epochs: int, epoch: int) -> float:
    return min(1.0, (epoch + 1) / epochs) if epochs else 1.0
