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
    x_adv: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    step_size: float,
) -> torch.Tensor:
    """All of a PGD step but the network: the loss's gradient at the logits, ascent, next batch."""
    m = logits.shape[0] // x.shape[0]
    torch.autograd.grad(smooth_ce(logits, target, m), logits)
    g = grad.reshape(-1, m, *x.shape[1:]).sum(1)
    norms = g.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
    x_adv = torch.clamp(x_adv + step_size * g / norms, 0, 1)
    delta = (x_adv - x).renorm(p=2, dim=0, maxnorm=epsilon)
    return (x + delta).repeat_interleave(m, dim=0) + noise


def vote(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    counts += torch.bincount(logits.argmax(1), minlength=counts.shape[-1])
    return counts
