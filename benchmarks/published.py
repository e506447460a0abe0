"""The operations as published training code of this field writes them, in our own words.

They are the baseline of every ratio: one torch call after another, every intermediate in memory.
"""

from __future__ import annotations

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
    """All of a PGD step but the network, as the SmoothAdv attack is published.

    Salman et al. 2019 keep the perturbation as a leaf tensor that autograd reaches through the
    repetition and the addition of the noise, normalise its gradient in place, draw a random
    direction where it is zero, let an SGD optimizer ascend, and clamp and project the perturbation.
    ``grad`` is what the network's backward would bring to its input.
    """
    m = logits.shape[0] // x.shape[0]
    torch.autograd.grad(smooth_ce(logits, target, m), logits)
    noisy = (x + delta).repeat_interleave(m, dim=0) + noise
    optimizer.zero_grad()
    noisy.backward(grad)
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
    return noisy


def vote(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    counts += torch.bincount(logits.argmax(1), minlength=counts.shape[-1])
    return counts
