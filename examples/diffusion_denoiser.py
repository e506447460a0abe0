"""Diffusion denoised smoothing (Carlini et al. 2023): a diffusion model before a classifier.

    drf-fast certify --arch diffusion_denoiser:make --data cifar10 --sigma 0.5 --skip 100 --n 10000

in this folder, with the packages diffusers and timm and the weights of a classifier of clean images
in classifier.pt. Neither network is trained again.
"""

from __future__ import annotations

import torch
from torch import nn

from drf_fast import models

SIGMA = 0.5  # as --sigma


class Denoised(nn.Module):
    """A classifier of clean images in [0, 1] behind one step of a diffusion model.

    A diffusion model knows x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise, of images x in [-1, 1].
    There distances are twice those in [0, 1], so the noise is 2 sigma, and t is the step at which
    (1 - abar_t) / abar_t is (2 sigma)^2.

    Args:
        unet: called with (x_t, t), predicts the noise as ``.sample``, like those of diffusers.
        abar: (T,) cumulative products of the alphas, ``alphas_cumprod`` of a scheduler.
        classifier: images in [0, 1], of the size of x, to logits. It may resize them; before the
            denoiser nothing may, since resized noise is another noise.
        sigma: of the noise in x.
    """

    def __init__(
        self, unet: nn.Module, abar: torch.Tensor, classifier: nn.Module, sigma: float
    ) -> None:
        super().__init__()
        self.unet, self.classifier = unet, classifier
        self.t = int((abar - 1 / (1 + (2 * sigma) ** 2)).abs().argmin())
        self.signal, self.noise = float(abar[self.t]) ** 0.5, (1 - float(abar[self.t])) ** 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_t = self.signal * (2 * x - 1)
        clean = (x_t - self.noise * self.unet(x_t, self.t).sample) / self.signal
        return self.classifier((clean.clamp(-1, 1) + 1) / 2)


def make(num_classes: int) -> nn.Module:
    import timm  # pyright: ignore[reportMissingImports]
    from diffusers import DDPMScheduler, UNet2DModel  # pyright: ignore[reportMissingImports]

    name = "google/ddpm-cifar10-32"
    unet, scheduler = (c.from_pretrained(name) for c in (UNet2DModel, DDPMScheduler))
    network = timm.create_model(
        "resnet18", num_classes=num_classes, checkpoint_path="classifier.pt"
    )
    normalize = models.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return Denoised(unet, scheduler.alphas_cumprod, nn.Sequential(normalize, network), SIGMA)
