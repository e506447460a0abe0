"""The losses as modules."""

from __future__ import annotations

import torch
from torch import nn

from drf_fast import functional


class SmoothCELoss(nn.Module):
    """``functional.smooth_ce`` as a module; arguments as there."""

    def __init__(
        self, num_samples: int | None = None, *, sample_dim: int = 1, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim, self.reduction = num_samples, sample_dim, reduction

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.smooth_ce(
            logits,
            target,
            self.num_samples,
            sample_dim=self.sample_dim,
            reduction=self.reduction,
        )


class ConsistencyLoss(nn.Module):
    """``functional.consistency_loss`` as a module; arguments as there."""

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        lam: float,
        eta: float = 0.5,
        sample_dim: int = 1,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim, self.reduction = num_samples, sample_dim, reduction
        self.lam, self.eta = lam, eta

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.consistency_loss(
            logits,
            target,
            self.num_samples,
            lam=self.lam,
            eta=self.eta,
            sample_dim=self.sample_dim,
            reduction=self.reduction,
        )


class MacerLoss(nn.Module):
    """``functional.macer_loss`` as a module; arguments as there."""

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        sigma: float,
        lam: float,
        gamma: float = 8.0,
        beta: float = 16.0,
        sample_dim: int = 1,
    ) -> None:
        super().__init__()
        self.num_samples, self.sample_dim = num_samples, sample_dim
        self.sigma, self.lam, self.gamma, self.beta = sigma, lam, gamma, beta

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.macer_loss(
            logits,
            target,
            self.num_samples,
            sigma=self.sigma,
            lam=self.lam,
            gamma=self.gamma,
            beta=self.beta,
            sample_dim=self.sample_dim,
        )
