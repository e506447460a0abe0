"""Losses against their formulas in float64: random logits, gradients, and how near is near."""

from __future__ import annotations

from collections.abc import Callable

import torch


def case(shape: tuple[int, int, int], scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 logits (B, m, K), the same for the same shape, and labels (B,)."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(shape[2], shape[:1], generator=generator)


def with_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value, and the gradient of its weighted sum when it is a vector."""
    logits = logits.detach().clone().requires_grad_()
    value = function(logits)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    (grad,) = torch.autograd.grad((value * weights).sum(), logits)
    return value.detach(), grad


def assert_close(
    got: torch.Tensor, expected: torch.Tensor, tolerance: float, beyond: float = 0.0
) -> None:
    """Within ``tolerance`` of the largest expected value, at least of 1, + ``beyond``."""
    scale = max(1.0, float(expected.abs().max()))
    assert float((got.double() - expected).abs().max()) <= tolerance * scale + beyond


def assert_gradients_close(
    got: torch.Tensor,
    expected: torch.Tensor,
    tolerance: float,
    beyond: torch.Tensor | float = 0.0,
) -> None:
    """Each component within ``tolerance`` of the largest one, + ``beyond``."""
    scale = float(expected.abs().max())
    assert bool(((got.double() - expected).abs() <= tolerance * scale + beyond).all())
