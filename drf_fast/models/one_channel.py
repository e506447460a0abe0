"""A convolution over one-channel images whose gradient for the image is one matrix product.

An adversary asks for that gradient at every step. Libraries pad the one channel to a vector's width
and then spend a third of LeNet's time on it. Here, a block of neighbouring columns of the incoming
gradient, all its channels, is a row of a matrix; the kernel, shifted along these columns, is the
other one; and what overlaps is added up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

# Columns of a block, measured with 5x5 kernels: bfloat16 products are fast, so they may waste more.
_COLUMNS = {torch.bfloat16: 12}
_OTHER_COLUMNS = 4


class OneChannelConv2d(nn.Conv2d):
    """``nn.Conv2d(1, out_channels, kernel_size)``, stride 1, no padding, the same parameters.

    Elsewhere than on the CPU, compiled, or where no gradient for the image is wanted, it is that.

    Args:
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
    """

    def __init__(self, out_channels: int, kernel_size: int) -> None:
        super().__init__(1, out_channels, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to (B, out_channels, H - kernel_size + 1, W - kernel_size + 1)."""
        ours = x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled()
        if not ours or torch.compiler.is_compiling():
            return super().forward(x)
        assert self.bias is not None
        tensors = (x, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):  # which does not reach into a Function
            dtype = torch.get_autocast_dtype("cpu")
            tensors = tuple(tensor.to(dtype) for tensor in tensors)
        return _Convolution.apply(*tensors)


class _Convolution(torch.autograd.Function):
    """The convolution; only its gradient for the images is not torch's."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            gradient_for_images(grad, weight) if for_x else None,
            conv2d_weight(x, list(weight.shape), grad) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
        )


def gradient_for_images(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum_{c,a,b} grad[n, c, i - a, j - b] weight[c, 0, a, b], products added up in float32.

    Args:
        grad: (B, C, H, W) gradient for the output.
        weight: (C, 1, k, l), of the same dtype.

    Returns:
        (B, 1, H + k - 1, W + l - 1) of that dtype.
    """
    count, channels, height, width = grad.shape
    high, wide = weight.shape[2:]
    columns = min(_COLUMNS.get(grad.dtype, _OTHER_COLUMNS), width)
    blocks = -(-width // columns)
    rows = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, blocks * columns - width))
    reach = columns + wide - 1
    parts = rows.reshape(-1, columns * channels) @ _band(weight, columns)
    parts = parts.view(count, height, blocks, high, reach)
    dtype = torch.promote_types(grad.dtype, torch.float32)
    total = parts.new_zeros((count, height + high - 1, blocks * columns + wide - 1), dtype=dtype)
    for row in range(high):
        for block in range(blocks):
            first = block * columns
            total[:, row : row + height, first : first + reach] += parts[:, :, block, row]
    return total[:, None, :, : width + wide - 1].to(grad.dtype)


def _band(weight: torch.Tensor, columns: int) -> torch.Tensor:
    """(columns * C, k * (columns + l - 1)): the kernel, one column further right in every block."""
    channels, _, high, wide = weight.shape
    shifts = [F.pad(weight[:, 0], (at, columns - 1 - at)) for at in range(columns)]
    return torch.stack(shifts).reshape(columns * channels, high * (columns + wide - 1))
