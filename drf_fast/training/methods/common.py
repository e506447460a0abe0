"""Arguments and result of all training methods, and the noisy batch that most of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from drf_fast.adversary import attack
from drf_fast.balls import HardBall, SoftBall
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
class MethodOptions:
    """Hyperparameters of a training step; each method reads its own.

    Attributes:
        sigma: noise level in pixel units.
        num_samples: m, noisy copies of an image.
        steps: T, steps of the adversary.
        grad_norm: "image", "batch" or "none", see ``adversary_step``.
        consistency_lam, consistency_eta: weights of the consistency loss.
        stability_lam: weight of the stability term.
        macer_lam, macer_gamma, macer_beta: see ``macer_loss``.
        mix_alpha, mix_eta, mix_step, mix_radius: see ``smoothmix``.
        catrs_lam: see ``catrs``.
    """

    sigma: float
    num_samples: int
    steps: int = 4
    grad_norm: str = "image"
    consistency_lam: float = 1.0
    consistency_eta: float = 0.5
    stability_lam: float = 2.0
    macer_lam: float = 12.0
    macer_gamma: float = 8.0
    macer_beta: float = 16.0
    mix_alpha: float = 1.0
    mix_eta: float = 5.0
    mix_step: int = 0
    mix_radius: float = 1.0
    catrs_lam: float = 1.0


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
