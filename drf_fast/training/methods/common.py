"""Arguments and result of all training methods, and the noisy batch that most of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from drf_fast.adversary import attack
from drf_fast.balls import HardBall, SoftBall
from drf_fast.config.options import TrainConfig
from drf_fast.functional import noisy_repeat
from drf_fast.runtime.logits import logits_of


@dataclass(frozen=True)
class Batch:
    """Images, labels, and what determines their noise.

    Attributes:
        x: (B, C, H, W) images in [0, 1].
        target: (B,) int64 labels.
        key: the noise key of this step, see ``noise_key``; in a CUDA graph a tensor.
        image_ids: (B,) int64 indices into the data set.
        smoothed: (B, K) smoothed predictions of the teacher, for catrs only.
    """

    x: torch.Tensor
    target: torch.Tensor
    key: int | torch.Tensor
    image_ids: torch.Tensor
    smoothed: torch.Tensor | None = None

    @property
    def noise(self) -> dict[str, Any]:
        """The arguments of ``noisy_repeat`` that determine the noise of these images."""
        return {"seed": self.key, "image_ids": self.image_ids}

    def part(self, rows: slice) -> Batch:
        """The batch of some of the images, with the same noise."""
        smoothed = None if self.smoothed is None else self.smoothed[rows]
        return Batch(self.x[rows], self.target[rows], self.key, self.image_ids[rows], smoothed)


@dataclass(frozen=True)
class MethodOptions(TrainConfig):
    """The settings of a training step, with what changes from epoch to epoch at its value there.

    Each method reads its own.

    Attributes:
        mix_radius: how far smoothmix's adversarial image after one step may be from the image, L2
            in pixel units.
    """

    mix_radius: float = 1.0


@dataclass(frozen=True)
class StepLoss:
    """Loss of one training step.

    Attributes:
        loss: 0-dim, to be differentiated.
        logits: (B*m, K) of the noisy batch, detached.
        distance: (B,) distances of the adversarial images, or None without an adversary.
    """

    loss: torch.Tensor
    logits: torch.Tensor
    distance: torch.Tensor | None = field(default=None)


Model = Callable[[torch.Tensor], torch.Tensor]
Ball = HardBall | SoftBall | None


def noisy_batch(
    model: Any, batch: Batch, options: MethodOptions, ball: Ball
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B*m, ...) noisy copies of the adversarial images, and their distances (B,).

    Without a ball, of the clean images, and None.
    """
    if ball is None:
        return noisy_repeat(batch.x, options.sigma, options.num_samples, **batch.noise), None
    adversarial = attack(
        model,
        batch.x,
        batch.target,
        sigma=options.sigma,
        num_samples=options.num_samples,
        steps=options.steps,
        ball=ball,
        grad_norm=options.grad_norm,
        **batch.noise,
    )
    return adversarial.noisy, adversarial.distance


def cross_entropy_step(model: Any, batch: Batch, options: MethodOptions, ball: Ball) -> StepLoss:
    """Mean cross-entropy over the m noisy copies, the loss of Gaussian training and SmoothAdv."""
    noisy, distance = noisy_batch(model, batch, options, ball)
    logits = logits_of(model(noisy))
    target = batch.target.repeat_interleave(options.num_samples)
    loss = torch.nn.functional.cross_entropy(logits.float(), target)
    return StepLoss(loss, logits.detach(), distance)
