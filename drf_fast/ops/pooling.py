"""relu(max_pool2d(x, 2)), alone and after a one-channel convolution, with a fast backward pass.

An adversary needs the gradient with respect to the image at every step. torch stores the index of
each maximum in 8 bytes, zeroes a gradient of the size before pooling, fills a quarter of it and
convolves all of it with kernels padded from one channel to a vector's width. Here an index is one
byte, and the gradient of a one-channel image is summed directly from the pooled gradient, a quarter
of the size. Off the CPU, in contiguous order, and in compiled code torch's operations are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from drf_fast.backends import dispatch
from drf_fast.backends.native import cpu
from drf_fast.backends.native.pooling import FLOATS, KERNEL_SIZES, is_supported
from drf_fast.backends.reference import pooling as reference
from drf_fast.ops import schemas
from drf_fast.runtime.modules import has_hooks, has_own_forward
from drf_fast.runtime.tracing import (
    are_transforms_active,
    is_batched,
    is_forward_mode_active,
    is_jit_tracing,
)


def max_pool_relu(x: torch.Tensor) -> torch.Tensor:
    """relu(max_pool2d(x, 2)): (B, C, H, W) -> (B, C, H // 2, W // 2), equal to torch's."""
    if not _has_own_kernel() or not is_supported(x):
        return F.relu(F.max_pool2d(x, 2))
    if not (torch.is_grad_enabled() and x.requires_grad):
        return schemas.max_pool_relu(x, False)[0]
    return _MaxPoolReLU.apply(x)


def conv_pool_relu(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """max_pool_relu(conv(x)), with a faster backward pass to images of one channel."""
    requires_backward = torch.is_grad_enabled() and x.requires_grad
    if not (
        requires_backward
        and _has_own_kernel()
        and x.device.type == "cpu"
        and _has_own_backward(conv, x)
    ):
        return max_pool_relu(conv(x))
    assert conv.bias is not None
    tensors = (x, conv.weight, conv.bias)
    if torch.is_autocast_enabled("cpu"):
        # Cast here, so that what the backward pass saves has the dtype of the convolution.
        tensors = tuple(_autocast(tensor) for tensor in tensors)
    if tensors[0].dtype not in FLOATS:
        return max_pool_relu(conv(x))
    return _ConvPoolReLU.apply(*tensors)


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as autocast passes it to a convolution: float64 stays as it is."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


def _has_own_kernel() -> bool:
    return (
        not torch.compiler.is_compiling()
        and not are_transforms_active()
        and not is_forward_mode_active()
        and not is_jit_tracing()
        and dispatch.current() in ("auto", "native")
        and "max_pool_relu" in cpu.OPERATIONS
    )


def _has_own_backward(conv: nn.Conv2d, x: torch.Tensor) -> bool:
    """One channel, a small square kernel without stride or padding, output of even size, not 0.

    And a call that is nothing but the convolution: hooks also compute weights (pruning, spectral
    normalisation), and another class may do anything.
    """
    k = conv.kernel_size[0]
    return (
        type(conv) is nn.Conv2d
        and not has_hooks(conv)
        and not has_own_forward(conv)
        and conv.in_channels == 1
        and conv.kernel_size == (k, k)
        and k in KERNEL_SIZES
        and (conv.stride, conv.padding, conv.dilation) == ((1, 1), (0, 0), (1, 1))
        and conv.bias is not None
        and x.dim() == 4
        and x.numel() > 0
        and all(size >= k and (size - k) % 2 for size in x.shape[2:])
    )


def _pool_backward(grad: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    # Second derivatives, and the gradients of a whole Jacobian at once, are for plain torch.
    if torch.is_grad_enabled() or is_batched(grad):
        return reference.unpooled(grad, index)
    return schemas.max_pool_relu_backward(grad, index)


class _MaxPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out, index = schemas.max_pool_relu(x, True)
        ctx.save_for_backward(index)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _pool_backward(grads[0], ctx.saved_tensors[0])


class _ConvPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        y = F.conv2d(x, weight, bias).contiguous(memory_format=torch.channels_last)
        out, index = schemas.max_pool_relu(y, True)
        ctx.save_for_backward(x, weight, bias, index)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx.needs_input_grad, grads[0], x, weight, bias)
        x_needs_grad, weight_needs_grad, bias_needs_grad = ctx.needs_input_grad
        grads_in: list[torch.Tensor | None] = [None, None, None]
        if x_needs_grad:
            function = (reference if is_batched(grads[0]) else schemas).pooled_image_gradient
            grads_in[0] = function(grads[0], index, weight)
        if weight_needs_grad or bias_needs_grad:
            grad = _pool_backward(grads[0], index)
            grads_in[1] = conv2d_weight(x, list(weight.shape), grad) if weight_needs_grad else None
            grads_in[2] = grad.sum((0, 2, 3)) if bias_needs_grad else None
        return tuple(grads_in)


def _differentiable_backward(
    needed: tuple[bool, ...],
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x, weight and bias in torch's operations, for second derivatives."""
    # Of views: hooks of the tensors themselves are for the pass that called this one.
    x, weight, bias = (tensor.view_as(tensor) for tensor in (x, weight, bias))
    out = F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2))
    wanted = [t for t, needs in zip((x, weight, bias), needed, strict=True) if needs]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if needs else None for needs in needed)
