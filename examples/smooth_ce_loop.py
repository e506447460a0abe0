"""Use the soft-smoothed loss in your own training loop: two lines of drf_fast.

    python examples/smooth_ce_loop.py

The loss is -log of the mean probability of the label over m noisy copies of an image. The network
learns to be right on average under noise, which is what a certificate measures.
"""

from __future__ import annotations

import torch

import drf_fast
from drf_fast.data import batches, load
from drf_fast.models import LeNet

SIGMA, M = 0.5, 4  # noise in pixel units, noisy copies of an image


def main(images: int = 4000, epochs: int = 2) -> float:
    """Train; returns the accuracy on test images with one draw of noise each."""
    torch.manual_seed(0)
    model = LeNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    train, test = load("mnist-mini", "train", limit=images), load("mnist-mini", "test")
    for epoch in range(epochs):
        total = 0.0
        for x, y, _ in batches(train, 64, shuffle_seed=0, epoch=epoch):
            noisy = drf_fast.noisy_repeat(x, SIGMA, M)  # (64 * M, 1, 28, 28)
            loss = drf_fast.smooth_ce(model(noisy), y, M)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        print(f"epoch {epoch + 1}: loss {total / len(train):.3f}")
    model.eval()
    with torch.no_grad():
        noisy = drf_fast.noisy_repeat(test.float_images(slice(None)), SIGMA, 1)
        accuracy = (model(noisy).argmax(1) == test.labels).float().mean().item()
    print(f"accuracy under noise: {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
