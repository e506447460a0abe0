"""Adversarial images for a smoothed classifier: candidates, and the choice of the worst.

Every candidate lies within epsilon of its image. PGD climbs ``smooth_ce`` from the image and from
random points in the ball; DDN searches for the smallest perturbation that changes the class, which
is scaled to norm epsilon, since a longer step in that direction misleads more of the noisy copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from drf_fast.adversary import attack
from drf_fast.attacks.ddn import ddn
from drf_fast.balls import HardBall
from drf_fast.functional import noise_key, noisy_repeat
from drf_fast.runtime.tensors import per_image

# Steps of ``noise_key`` with the attack's key: one for DDN, and one for each restart.
_DDN, _FIRST_RESTART = 0, 1


@dataclass(frozen=True)
class Search:
    """The settings of the search.

    Attributes:
        num_samples: m, noisy copies of an image in each gradient.
        steps: T of PGD, each of size 2 epsilon / T.
        restarts: runs of PGD, the first from the image, the others from random points in the ball.
        ddn_steps: steps of DDN; 0 leaves it out.
        key: determines noise and random points together with the image ids.
    """

    num_samples: int
    steps: int
    restarts: int
    ddn_steps: int
    key: int

    def directions(
        self, model: Callable[[torch.Tensor], Any], x: torch.Tensor, target: torch.Tensor,
        sigma: float, ids: torch.Tensor,
    ) -> torch.Tensor | None:  # fmt: skip
        """DDN's (B, ...) perturbations, to be scaled to every epsilon; None without DDN."""
        if not self.ddn_steps:
            return None
        found = ddn(
            model,
            x,
            target,
            sigma=sigma,
            num_samples=self.num_samples,
            steps=self.ddn_steps,
            seed=noise_key(self.key, _DDN),
            image_ids=ids,
        )
        return found - x

    def candidates(
        self, model: Callable[[torch.Tensor], Any], x: torch.Tensor, target: torch.Tensor,
        sigma: float, ids: torch.Tensor, epsilon: float, direction: torch.Tensor | None,
    ) -> list[tuple[str, torch.Tensor]]:  # fmt: skip
        """Names of searches and their (B, ...) images within epsilon of x."""
        found = []
        for restart in range(self.restarts):
            key = noise_key(self.key, _FIRST_RESTART + restart)
            ascended = attack(
                model,
                x,
                target,
                sigma=sigma,
                num_samples=self.num_samples,
                steps=self.steps,
                ball=HardBall(epsilon),
                seed=key,
                image_ids=ids,
                start=random_start(x, epsilon, key, ids) if restart else None,
            )
            found.append(("pgd", ascended.x))
        if direction is not None:
            found.append(("ddn", scaled_to(x, direction, epsilon)))
        return found


def random_start(x: torch.Tensor, epsilon: float, key: int, ids: torch.Tensor) -> torch.Tensor:
    """x + a point drawn uniformly from the L2 ball of radius epsilon, clamped to [0, 1].

    The first D of D + 2 coordinates of a uniform point on the unit sphere are uniform in the ball
    of D dimensions (Archimedes). Clamping moves a point no further from x, which lies in [0, 1].
    """
    batch, pixels = x.shape[0], x[0].numel()
    zeros = x.new_zeros((batch, pixels + 2))
    # Another stream than the attack's noise, which has the same key.
    normal = noisy_repeat(zeros, 1.0, 1, seed=key, image_ids=ids, stream="selection")
    point = (normal / normal.norm(dim=1, keepdim=True))[:, :pixels]
    return (x + epsilon * point.reshape(x.shape)).clamp(0, 1)


def scaled_to(x: torch.Tensor, direction: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x + epsilon * direction / ||direction||_2 of each image, clamped to [0, 1]."""
    norm = direction.flatten(1).norm(dim=1).clamp(min=1e-12)
    scale = per_image(epsilon / norm, x)
    return (x + scale * direction).clamp(0, 1)


def worst(
    candidates: list[tuple[str, torch.Tensor]], votes: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[str], torch.Tensor]:
    """For each image the candidate with the fewest votes for its class, the first of equal ones.

    Args:
        candidates: names and (B, ...) images.
        votes: (B, ...) images -> (B,) votes for the attacked class, under fresh noise.

    Returns:
        B names, and the (B, ...) images.
    """
    if len(candidates) == 1:
        name, images = candidates[0]
        return [name] * len(images), images
    counts = torch.stack([votes(images) for _, images in candidates])
    chosen = counts.argmin(0)  # the first of equal ones
    stacked = torch.stack([images for _, images in candidates])
    picked = stacked[chosen.to(stacked.device), torch.arange(stacked.shape[1])]
    return [candidates[i][0] for i in chosen.tolist()], picked
