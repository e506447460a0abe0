"""relu(max_pool2d(x, 2)), and a one-channel convolution before it, made for an adversary's passes.

An adversary asks for the gradient for the image at every step. Libraries keep 8 bytes for the place
of each maximum, clear a gradient of the size before pooling, fill a quarter of it and convolve all
of it with kernels padded from one channel to a vector's width. Here a byte says where each maximum
was, and the gradient for a one-channel image is added up from the pooled one, of which there is a
quarter. Elsewhere than on the CPU in channels_last order, and in compiled code, it is torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from drf_fast.backends import dispatch
from drf_fast.backends.native import cpu
from drf_fast.backends.native.pooling import FLOATS, KERNEL_SIZES, takes
from drf_fast.ops import schemas


def max_pool_relu(x: torch.Tensor) -> torch.Tensor:
    """relu(max_pool2d(x, 2)) of (B, C, H, W): (B, C, H // 2, W // 2), value and gradient torch's.

    On the CPU, where it has a backward pass of its own, there is no second derivative.
    """
    if not _has_own_kernel() or not takes(x):
        return F.relu(F.max_pool2d(x, 2))
    if not (torch.is_grad_enabled() and x.requires_grad):
        return schemas.max_pool_relu(x, False)[0]
    return _MaxPoolReLU.apply(x)


def conv_pool_relu(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """max_pool_relu(conv(x)), with a shorter way to the gradient for images of one channel."""
    wanted = torch.is_grad_enabled() and x.requires_grad
    if not (wanted and _has_own_kernel() and x.device.type == "cpu" and _is_simple(conv, x)):
        return max_pool_relu(conv(x))
    assert conv.bias is not None
    tensors = (x, conv.weight, conv.bias)
    if torch.is_autocast_enabled("cpu"):  # which does not reach into a Function
        dtype = torch.get_autocast_dtype("cpu")
        tensors = tuple(tensor.to(dtype) for tensor in tensors)
    if tensors[0].dtype not in FLOATS:
        return max_pool_relu(conv(x))
    return _ConvPoolReLU.apply(*tensors)


def _has_own_kernel() -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and dispatch.current() in ("auto", "native")
        and "max_pool_relu" in cpu.OPERATIONS
    )


def _is_simple(conv: nn.Conv2d, x: torch.Tensor) -> bool:
    """One channel, a small square kernel without stride or padding, an output of even size."""
    k = conv.kernel_size[0]
    return (
        conv.in_channels == 1
        and conv.kernel_size == (k, k)
        and k in KERNEL_SIZES
        and (conv.stride, conv.padding, conv.dilation) == ((1, 1), (0, 0), (1, 1))
        and conv.bias is not None
        and x.dim() == 4
        and all(size >= k and (size - k) % 2 for size in x.shape[2:])
    )


class _MaxPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out, index = schemas.max_pool_relu(x, True)
        ctx.save_for_backward(index)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return schemas.max_pool_relu_backward(grads[0], ctx.saved_tensors[0])


class _ConvPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        y = F.conv2d(x, weight, bias).contiguous(memory_format=torch.channels_last)
        out, index = schemas.max_pool_relu(y, True)
        ctx.save_for_backward(x, weight, index)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, index = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        found: list[torch.Tensor | None] = [None, None, None]
        if for_x:
            found[0] = schemas.pooled_image_gradient(grads[0], index, weight)
        if for_weight or for_bias:
            grad = schemas.max_pool_relu_backward(grads[0], index)
            found[1] = conv2d_weight(x, list(weight.shape), grad) if for_weight else None
            found[2] = grad.sum((0, 2, 3)) if for_bias else None
        return tuple(found)
