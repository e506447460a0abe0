"""Named hyperparameters of the MNIST experiments of the DRF paper (Wang, Zhou, Liu 2024).

Common to all: LeNet, batch 256, SGD with Nesterov momentum 0.9, weight decay 1e-4, 90 epochs, lr
0.01 divided by 10 every 30. The adversarial ones: m = 4, T = 10, epsilon = 255/256, warmed up over
the first 10 epochs (Jeong, Shin 2020, whose code the paper builds on).
"""

from __future__ import annotations

from typing import Any

from drf_fast.errors import InputError

_MNIST: dict[str, Any] = {
    "data": "mnist",
    "arch": "lenet",
    "batch_size": 256,
    "lr": 0.01,
    "lr_drops": (1 / 3, 2 / 3),
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "epochs": 90,
}
_ADVERSARIAL = {"num_samples": 4, "steps": 10, "epsilon": 255 / 256, "warmup_epochs": 10}
_SMOOTHADV = {**_MNIST, **_ADVERSARIAL, "method": "smoothadv", "drf": False}
_CONSISTENCY = {
    **_MNIST,
    **_ADVERSARIAL,
    "method": "consistency",
    "drf": False,
    "consistency_lam": 1.0,
    "consistency_eta": 0.5,
}
_DRF = {"drf": True, "lambda_lr": 0.02, "kappa": 100}

_RECIPES: dict[str, dict[str, Any]] = {
    "mnist-gaussian": {**_MNIST, "method": "gaussian", "num_samples": 1},
    "mnist-smoothadv": _SMOOTHADV,
    "mnist-smoothadv-drf": {**_SMOOTHADV, **_DRF, "lambda0": 1.0},
    "mnist-consistency": _CONSISTENCY,
    "mnist-consistency-drf": {**_CONSISTENCY, **_DRF, "lambda0": 2.0},
}
NAMES = tuple(_RECIPES)


def get(name: str) -> dict[str, Any]:
    """The settings of a recipe, by field of ``TrainConfig``.

    Raises:
        InputError: unknown name.
    """
    if name not in _RECIPES:
        raise InputError(f"--recipe must be one of {', '.join(NAMES)}, got {name!r}")
    return dict(_RECIPES[name])
