"""Denoised smoothing (Salman et al. 2020): certify a classifier that was trained without noise.

    python examples/denoised_smoothing.py

First a classifier is trained on clean digits and frozen. Then a small denoiser in front of it is
trained so that the classifier recognises noisy digits. Both together are the network to smooth.
For ``drf-fast certify --arch module:make`` let ``make(num_classes)`` return such a network.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import drf_fast
from drf_fast import models
from drf_fast.data import batches, load

SIGMA = 0.75


def denoiser() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 5, padding=2), nn.Sigmoid())


def train(network: nn.Module, loss, images: int) -> None:
    data = load("mnist-mini", "train", limit=images)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for x, y, _ in batches(data, 64, shuffle_seed=0, epoch=0, drop_last=True):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()


def main(images: int = 4000, certified: int = 20, n: int = 1000) -> tuple[float, float]:
    """The average certified radius without the denoiser and with it."""
    torch.manual_seed(0)
    classifier, clean = models.build("lenet", 10, (1, 28, 28)), denoiser()
    train(classifier, lambda x, y: F.cross_entropy(classifier(x), y), images)
    classifier.eval().requires_grad_(False)
    whole = nn.Sequential(clean, classifier)

    def stability(x, y):  # its "Stab": the classifier sees in both the same digit
        return F.cross_entropy(whole(drf_fast.noisy_repeat(x, SIGMA, 1)), classifier(x).argmax(1))

    train(clean, stability, images)
    found, test = [], load("mnist-mini", "test")
    for network in (classifier, whole):
        smoothed = drf_fast.SmoothedClassifier(network, 10, SIGMA)
        result = drf_fast.certify_dataset(smoothed, test, n=n, indices=range(certified))
        found.append(result.acr)
    print(f"average certified radius {found[0]:.3f}, behind the denoiser {found[1]:.3f}")
    return found[0], found[1]


if __name__ == "__main__":
    main()
