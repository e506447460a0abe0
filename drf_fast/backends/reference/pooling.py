"""relu(max_pool2d(x, 2)) and its gradients in plain torch; all in channels_last order."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from drf_fast.runtime.tensors import arithmetic_dtype

# The index of a window whose maximum is not above 0: ReLU stops its gradient.
NOWHERE = 4


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """A copy with channels_last strides, also where sizes of 1 make strides ambiguous."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def max_pool_relu(x, indexed):
    """(B, C, H, W), H and W even -> values (B, C, H/2, W/2), and indices, uint8, or empty.

    An index is the position of the maximum in its window, 2 row + column, or ``NOWHERE``.
    """
    pooled, position = F.max_pool2d(x, 2, return_indices=True)
    out = _channels_last(F.relu(pooled))
    if not indexed:
        empty = x.new_empty((0, x.shape[1], 1, 1), dtype=torch.uint8)
        return out, _channels_last(empty)
    width = x.shape[3]
    position = 2 * (position // width % 2) + position % width % 2
    return out, _channels_last(torch.where(out <= 0, NOWHERE, position).to(torch.uint8))


def max_pool_relu_backward(grad, index):
    """The gradient of x (B, C, 2H, 2W) from the gradient of the output (B, C, H, W)."""
    return _channels_last(unpooled(grad, index))


def unpooled(grad, index):
    """As ``max_pool_relu_backward``, in any memory format; vmap can transform it."""
    batch, channels, rows, columns = grad.shape
    windows = torch.stack([torch.where(index == at, grad, 0) for at in range(NOWHERE)], -1)
    windows = windows.reshape(batch, channels, rows, columns, 2, 2)
    return windows.transpose(3, 4).reshape(batch, channels, 2 * rows, 2 * columns)


def pooled_image_gradient(grad, index, weight):
    """The gradient of max_pool_relu(conv2d(image, weight)) for images (B, 1, H, W).

    Sums are in float32; float64 for float64 gradients.
    """
    wide = arithmetic_dtype(grad.dtype)
    before = unpooled(grad.to(wide), index)
    return F.conv_transpose2d(before, weight.to(wide)).to(grad.dtype).contiguous()
