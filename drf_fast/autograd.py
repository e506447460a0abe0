"""The backward of each differentiable operation.

Every loss computes its gradient in the forward pass, from the one read of the logits, so backward
is one multiplication by the incoming gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from drf_fast import ops


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to be differentiated twice.

    torch's ``once_differentiable`` refuses only where the incoming gradient has a graph, and a
    loss's has none: there the gradient would silently count as a constant.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, grad: torch.Tensor) -> Any:
        # Compiled code refuses by itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "drf_fast operations can be differentiated once, got create_graph=True, which asks "
                "for a second derivative; leave it out, or write the loss in torch operations"
            )
        return backward(ctx, grad)

    return checked


class NoisyRepeat(torch.autograd.Function):
    """Noisy copies depend on the image by the identity, so its gradient is their sum."""

    @staticmethod
    def forward(ctx: Any, x, sigma, key, image_ids, sample_offset, num_samples, stream):
        ctx.num_samples = num_samples
        return ops.noisy_repeat(x, sigma, key, image_ids, sample_offset, num_samples, stream)

    @staticmethod
    @_once
    def backward(ctx: Any, grad):
        grad_x = ops.noisy_repeat_backward(grad, ctx.num_samples)
        return grad_x, None, None, None, None, None, None


class _Loss(torch.autograd.Function):
    """A loss whose raw operation has already returned d(loss)/d(logits)."""

    operation: Any
    arguments: int  # of the operation, apart from the logits and need_grad

    @classmethod
    def _forward(cls, ctx: Any, logits, *arguments):
        loss, grad = cls.operation(logits, *arguments, ctx.needs_input_grad[0])
        ctx.save_for_backward(grad)
        return loss

    @classmethod
    def _backward(cls, ctx: Any, grad_loss):
        (grad,) = ctx.saved_tensors
        if grad_loss.dim() == 1:
            grad_loss = grad_loss.reshape(-1, 1, 1)
        # Multiplied in the loss's float32: a gradient scaler's 2^16 is infinite in float16.
        scaled = (grad.to(grad_loss.dtype) * grad_loss).to(grad.dtype)
        return (scaled, *[None] * cls.arguments)


class SmoothCE(_Loss):
    """d/dz_i^k = -w_i (1[k = y] - F_i^k), w = softmax_i(log F_i^y)."""

    operation = staticmethod(ops.smooth_ce)
    arguments = 2

    @staticmethod
    def forward(ctx: Any, logits, target, reduction):
        return SmoothCE._forward(ctx, logits, target, reduction)

    @staticmethod
    @_once
    def backward(ctx: Any, grad_loss):
        return SmoothCE._backward(ctx, grad_loss)


class Consistency(_Loss):
    """See ``backends/reference.py`` for the derivation."""

    operation = staticmethod(ops.consistency_loss)
    arguments = 4

    @staticmethod
    def forward(ctx: Any, logits, target, lam, eta, reduction):
        return Consistency._forward(ctx, logits, target, lam, eta, reduction)

    @staticmethod
    @_once
    def backward(ctx: Any, grad_loss):
        return Consistency._backward(ctx, grad_loss)


class Macer(_Loss):
    """See ``backends/reference.py`` for the derivation."""

    operation = staticmethod(ops.macer_loss)
    arguments = 5

    @staticmethod
    def forward(ctx: Any, logits, target, sigma, lam, gamma, beta):
        return Macer._forward(ctx, logits, target, sigma, lam, gamma, beta)

    @staticmethod
    @_once
    def backward(ctx: Any, grad_loss):
        return Macer._backward(ctx, grad_loss)
