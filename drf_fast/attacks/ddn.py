"""DDN, the attack that decouples direction and norm, on a smoothed classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from drf_fast.functional import noisy_repeat, smooth_ce
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.tensors import per_image


def ddn(
    model: Callable[[torch.Tensor], Any],
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    sigma: float,
    num_samples: int,
    steps: int,
    seed: int,
    image_ids: torch.Tensor,
    gamma: float = 0.05,
    initial_norm: float = 1.0,
) -> torch.Tensor:
    """The nearest image found to which the smoothed classifier does not assign class ``target``.

        delta <- delta + a_k g / ||g||,  g the gradient of smooth_ce at x + delta;
        e <- (1 - gamma) e where x + delta misleads the mean softmax, else (1 + gamma) e;
        delta <- clamp(x + e delta / ||delta||, 0, 1) - x;

    a_k falls from 1 to 0.01 along a half cosine. The noise is the same in every step, as in
    ``drf_fast.attack``; an image that misleads under this noise may not under fresh noise.

    Args:
        model: network (B*m, ...) -> (B*m, K), run in eval mode.
        x: (B, ...) images in [0, 1].
        target: (B,) int64, the class to be left.
        sigma: noise level in pixel units.
        num_samples: m, noisy copies of an image.
        steps: at least 1.
        seed, image_ids: determine the noise as in ``noisy_repeat``.
        gamma: relative change of the norm in a step.
        initial_norm: the norm at the start, in pixel units.

    Returns:
        (B, ...): for each image the nearest that misled the mean softmax or, if none did, the last
        one, whose distance is not bounded.

    Reference:
        Rony et al. 2019, algorithm 1; on smoothed classifiers Salman et al. 2019.
    """
    delta = torch.zeros_like(x)
    norm = x.new_full((x.shape[0],), initial_norm)
    nearest = torch.full_like(norm, math.inf)
    best = delta
    with frozen(model):
        for step in range(steps):
            gradient, misled = _gradient_and_misled(
                model, x + delta, target, sigma, num_samples, seed, image_ids
            )
            distance = delta.flatten(1).norm(dim=1)
            better = misled & (distance < nearest)
            nearest = torch.where(better, distance, nearest)
            best = torch.where(per_image(better, x), delta, best)
            size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            delta = delta + size * _unit(gradient)
            norm = norm * torch.where(misled, 1 - gamma, 1 + gamma)
            delta = (x + per_image(norm, x) * _unit(delta)).clamp(0, 1) - x
    return x + torch.where(per_image(torch.isinf(nearest), x), delta, best)


def _gradient_and_misled(
    model: Callable[[torch.Tensor], Any],
    images: torch.Tensor,
    target: torch.Tensor,
    sigma: float,
    num_samples: int,
    seed: int,
    ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of summed ``smooth_ce``, and (B,) bool: misled, not class ``target``."""
    with torch.enable_grad():
        images = images.requires_grad_()
        noisy = noisy_repeat(images, sigma, num_samples, seed=seed, image_ids=ids)
        logits = logits_of(model(noisy))
        loss = smooth_ce(logits, target, num_samples, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    mean = logits.detach().softmax(1).reshape(len(target), num_samples, -1).mean(1)
    return gradient, mean.argmax(1) != target


def _unit(v: torch.Tensor) -> torch.Tensor:
    """v / ||v||_2 of each image; zero stays zero."""
    return v / per_image(v.flatten(1).norm(dim=1).clamp(min=1e-12), v)
