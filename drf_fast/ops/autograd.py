"""The backward of each differentiable operation.

Every loss computes its gradient in the forward pass, together with its value, so backward is one
multiplication by the incoming gradient, or nothing where that is 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from drf_fast.ops import checks as check
from drf_fast.ops import schemas
from drf_fast.runtime.tracing import are_values_unknown, is_batched


def _once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``backward`` refuse double differentiation.

    torch's ``once_differentiable`` refuses only where the incoming gradient has an autograd graph.
    The gradient of a loss has none, so there ours would silently count as a constant.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, grad: torch.Tensor) -> Any:
        # In compiled code torch itself refuses.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "drf_fast operations can be differentiated once, got create_graph=True, which asks "
                "for a second derivative; leave it out, or write the loss in torch operations"
            )
        return backward(ctx, grad)

    return checked


def _refuse_export(ctx: Any) -> None:
    """Raise under torch.export, which records the forward pass only: gradients would be lost."""
    if ctx.needs_input_grad[0] and check.exporting():
        raise RuntimeError(
            "torch.export would drop the gradient of this drf_fast operation, got an input that "
            "requires one; export under torch.no_grad(), or train with torch.compile"
        )


def view_for_dynamo(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``; in compiled code a view of it, so that Dynamo knows that it requires a gradient.

    Of a tensor just wrapped by torch.func.grad, Dynamo (torch 2.14) believes that it requires none
    and would leave out our backward: the gradient would be 0.
    """
    return tensor.view_as(tensor) if torch.compiler.is_dynamo_compiling() else tensor


def requires_backward(tensor: torch.Tensor) -> bool:
    """Whether a backward pass may follow.

    Where not, the raw operation is called without an ``autograd.Function``, in half the time.
    Always true in compiled code, where torch leaves out what is not needed.
    """
    if torch.compiler.is_compiling():
        return True
    return tensor.requires_grad and torch.is_grad_enabled()


def noisy_repeat(x: torch.Tensor, *noise: Any) -> torch.Tensor:
    """``schemas.noisy_repeat`` with its backward; ``noise`` are its other arguments."""
    if requires_backward(x):
        return NoisyRepeat.apply(view_for_dynamo(x), *noise)
    return schemas.noisy_repeat(x, *noise)


class NoisyRepeat(torch.autograd.Function):
    """The Jacobian of each noisy copy is the identity, so the image's gradient is their sum."""

    @staticmethod
    def forward(ctx: Any, x, sigma, key, image_ids, sample_offset, num_samples, stream):
        _refuse_export(ctx)
        ctx.num_samples = num_samples
        return schemas.noisy_repeat(x, sigma, key, image_ids, sample_offset, num_samples, stream)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad):
        if is_batched(grad):  # the gradients of a whole Jacobian at once are for plain torch
            grad_x = grad.reshape(-1, ctx.num_samples, *grad.shape[1:]).sum(1)
        else:
            grad_x = schemas.noisy_repeat_backward(grad, ctx.num_samples)
        return grad_x, None, None, None, None, None, None


def loss(
    function: Any,
    logits: torch.Tensor,
    target: torch.Tensor,
    num_samples: int,
    sample_dim: int,
    *options: Any,
) -> torch.Tensor:
    """The loss computed by ``function``, one of the classes below, differentiable where needed."""
    if requires_backward(logits):
        if logits.dtype == torch.float16:
            # Its gradient is rounded to float16 only after a gradient scaler has scaled it.
            logits = logits.float()
        return function.apply(view_for_dynamo(logits), target, num_samples, sample_dim, *options)
    images = images_first(logits, num_samples, sample_dim)
    return function.operation(images, target, *options, False)[0]


def images_first(logits: torch.Tensor, num_samples: int, sample_dim: int) -> torch.Tensor:
    """The caller's logits, 2-D or 3-D, in either order, as a (B, m, K) view."""
    if logits.dim() == 2:
        batch = logits.shape[0] // num_samples
        sizes = (batch, num_samples) if sample_dim == 1 else (num_samples, batch)
        logits = logits.reshape(*sizes, logits.shape[1])
    return logits if sample_dim == 1 else logits.transpose(0, 1)


def _forward_and_save(
    ctx: Any,
    operation: Callable[..., Any],
    logits: torch.Tensor,
    target: torch.Tensor,
    layout: tuple[int, int],
    *options: Any,
) -> torch.Tensor:
    """The loss. Its gradient is computed here, in forward, and saved.

    The first backward returns it without a copy. Its receiver may change it in place, so a second
    backward of a retained graph recomputes it, for which the arguments are saved, too.
    """
    _refuse_export(ctx)
    images = images_first(logits, *layout)
    loss, grad = operation(images, target, *options, ctx.needs_input_grad[0])
    ctx.compiled = torch.compiler.is_compiling()
    ctx.shape, ctx.layout = logits.shape, layout
    if ctx.compiled:  # the compiler manages the memory: no need to give the gradient away
        ctx.save_for_backward(grad)
    else:
        # Saved as tensors where they are tensors, so that torch notices a change in between.
        tensors = [option for option in options if isinstance(option, torch.Tensor)]
        ctx.save_for_backward(logits, target, *tensors)
        others = [None if isinstance(option, torch.Tensor) else option for option in options]
        ctx.recompute = operation, others
        ctx.grad = grad
    return loss


def _grad_of_logits(ctx: Any, grad_loss: torch.Tensor) -> torch.Tensor:
    """d(loss)/d(logits) times the incoming gradient, in the shape of the caller's logits."""
    grad = _scaled_grad(ctx, grad_loss)
    if ctx.layout[1] == 0:
        grad = grad.transpose(0, 1)
    return grad.reshape(ctx.shape)


def _scaled_grad(ctx: Any, grad_loss: torch.Tensor) -> torch.Tensor:
    scale = grad_loss.reshape(-1, 1, 1) if grad_loss.dim() == 1 else grad_loss
    if ctx.compiled:
        (grad,) = ctx.saved_tensors
        return (grad.to(scale.dtype) * scale).to(grad.dtype)
    grad, ctx.grad = ctx.grad, None
    if grad is None:
        operation, others = ctx.recompute
        logits, target, *tensors = ctx.saved_tensors
        saved = iter(tensors)
        options = [next(saved) if option is None else option for option in others]
        grad = operation(images_first(logits, *ctx.layout), target, *options, True)[1]
    if is_batched(scale):  # the gradients of a whole Jacobian at once
        return (grad.to(scale.dtype) * scale).to(grad.dtype)
    # loss.backward() multiplies by 1; on the CPU reading that value costs nothing.
    readable = scale.is_cpu and not are_values_unknown()
    if readable and not any(scale.stride()[:1]) and scale.view(-1)[0].item() == 1.0:
        return grad
    if grad.dtype == scale.dtype:
        return grad.mul_(scale)
    # Multiplied in the dtype of the loss: half precision would round the factor, too.
    return (grad.to(scale.dtype) * scale).to(grad.dtype)


class SmoothCE(torch.autograd.Function):
    """d/dz_i^k = -w_i (1[k = y] - F_i^k), w = softmax_i(log F_i^y)."""

    operation = schemas.smooth_ce

    @staticmethod
    def forward(ctx: Any, logits, target, num_samples, sample_dim, reduction):
        return _forward_and_save(
            ctx, schemas.smooth_ce, logits, target, (num_samples, sample_dim), reduction
        )

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_loss):
        return (_grad_of_logits(ctx, grad_loss), *[None] * 4)


class ConsistencyLoss(torch.autograd.Function):
    """See ``backends/reference/operations.py`` for the derivation."""

    operation = schemas.consistency_loss

    @staticmethod
    def forward(ctx: Any, logits, target, num_samples, sample_dim, lam, eta, reduction):
        layout = (num_samples, sample_dim)
        return _forward_and_save(
            ctx, schemas.consistency_loss, logits, target, layout, lam, eta, reduction
        )

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_loss):
        return (_grad_of_logits(ctx, grad_loss), *[None] * 6)


class MacerLoss(torch.autograd.Function):
    """See ``backends/reference/operations.py`` for the derivation."""

    operation = schemas.macer_loss

    @staticmethod
    def forward(ctx: Any, logits, target, num_samples, sample_dim, sigma, lam, gamma, beta):
        layout = (num_samples, sample_dim)
        return _forward_and_save(
            ctx, schemas.macer_loss, logits, target, layout, sigma, lam, gamma, beta
        )

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_loss):
        return (_grad_of_logits(ctx, grad_loss), *[None] * 7)
