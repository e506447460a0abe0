"""The operations as published training code of this field computes them, in code of our own.

They are the baseline of every ratio: eager torch calls, with every intermediate in memory.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from torch.nn import functional as F


def noisy_repeat(x: torch.Tensor, sigma: float, m: int) -> torch.Tensor:
    repeated = x.repeat_interleave(m, dim=0)
    return repeated + torch.randn_like(repeated) * sigma


def smooth_ce(logits: torch.Tensor, target: torch.Tensor, m: int) -> torch.Tensor:
    p = F.softmax(logits, dim=1).reshape(-1, m, logits.shape[1]).mean(1)
    return F.nll_loss(torch.log(p.clamp(min=1e-20)), target)


def consistency_loss(
    logits: torch.Tensor, target: torch.Tensor, m: int, lam: float, eta: float
) -> torch.Tensor:
    chunks = logits.reshape(-1, m, logits.shape[1]).unbind(1)
    average = torch.stack([F.softmax(chunk, dim=1) for chunk in chunks]).mean(0)
    entropy = -(average * average.clamp(min=1e-20).log()).sum(1)
    divergences = [
        F.kl_div(F.log_softmax(chunk, dim=1), average, reduction="none").sum(1) for chunk in chunks
    ]
    cross_entropy = F.cross_entropy(logits, target.repeat_interleave(m))
    return cross_entropy + lam * torch.stack(divergences).mean() + eta * entropy.mean()


def pgd_step(
    logits: torch.Tensor,
    target: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    delta: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    noise: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """A PGD step without the network, as in the published SmoothAdv attack.

    Salman et al. 2019 keep the perturbation as a leaf tensor that autograd reaches through the
    repetition and the addition of the noise, normalise its gradient in place, draw a random
    direction where it is zero, let an SGD optimizer ascend, and clamp and project the perturbation.
    ``grad`` is the gradient that the network's backward would give its input.
    """
    m = logits.shape[0] // x.shape[0]
    torch.autograd.grad(smooth_ce(logits, target, m), logits)
    noisy = (x + delta).repeat_interleave(m, dim=0) + noise
    optimizer.zero_grad()
    noisy.backward(grad)
    ascend(x, delta, optimizer, epsilon)
    return noisy


def ascend(
    x: torch.Tensor, delta: torch.Tensor, optimizer: torch.optim.Optimizer, epsilon: float
) -> None:
    """Normalise the gradient of the perturbation, step, clamp and project; see ``pgd_step``."""
    assert delta.grad is not None
    norms = delta.grad.reshape(len(x), -1).norm(p=2, dim=1)
    delta.grad.div_(norms.reshape(-1, 1, 1, 1))
    zero = norms == 0
    if zero.any():
        delta.grad[zero] = torch.randn_like(delta.grad[zero])
    optimizer.step()
    with torch.no_grad():
        delta.add_(x).clamp_(0, 1).sub_(x)
        delta.renorm_(p=2, dim=0, maxnorm=epsilon)


def lenet() -> torch.nn.Module:
    """The network of the published MNIST experiments: 431,080 parameters."""
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 20, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Conv2d(20, 50, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(800, 500), torch.nn.ReLU(), torch.nn.Linear(500, 10)),
    )


def training_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    target: torch.Tensor,
    sigma: float,
    m: int,
    steps: int,
    epsilon: float,
) -> torch.Tensor:
    """SmoothAdv's step (Salman et al. 2019): T steps of the attack, one of the training."""
    noise = sigma * torch.randn_like(x.repeat_interleave(m, dim=0))
    delta = torch.zeros_like(x, requires_grad=True)
    ascent = torch.optim.SGD([delta], lr=2 * epsilon / steps, maximize=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _ in range(steps):
        logits = model((x + delta).repeat_interleave(m, dim=0) + noise)
        ascent.zero_grad()
        smooth_ce(logits, target, m).backward()
        ascend(x, delta, ascent, epsilon)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    logits = model((x + delta.detach()).repeat_interleave(m, dim=0) + noise)
    loss = F.cross_entropy(logits, target.repeat_interleave(m))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def vote(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    counts += torch.bincount(logits.argmax(1), minlength=counts.shape[-1])
    return counts


@torch.no_grad()
def sample_under_noise(
    model: torch.nn.Module, x: torch.Tensor, sigma: float, num: int, batch_size: int, classes: int
) -> np.ndarray:
    """Votes of one image, batch by batch, counted on the host (Cohen, Rosenfeld, Kolter 2019)."""
    counts = np.zeros(classes, dtype=int)
    while num > 0:
        rows = min(batch_size, num)
        num -= rows
        batch = x.repeat((rows, 1, 1, 1))
        predictions = model(batch + torch.randn_like(batch) * sigma).argmax(1)
        for index in predictions.cpu().numpy():
            counts[index] += 1
    return counts


def certify(
    model: torch.nn.Module,
    x: torch.Tensor,
    sigma: float,
    n0: int,
    n: int,
    alpha: float,
    batch_size: int,
    classes: int = 10,
) -> tuple[int, float]:
    """CERTIFY of one image (C, H, W), as in the reference code of 2019."""
    best = int(sample_under_noise(model, x, sigma, n0, batch_size, classes).argmax())
    count = int(sample_under_noise(model, x, sigma, n, batch_size, classes)[best])
    p = scipy.stats.beta.ppf(alpha, count, n - count + 1) if count else 0.0
    return (best, sigma * float(scipy.stats.norm.ppf(p))) if p > 0.5 else (-1, 0.0)
