"""relu(max_pool2d(x, 2)) and its gradients in plain torch; all in channels_last order."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from drf_fast.runtime.tensors import arithmetic_dtype

# The index of a window whose maximum is not above 0: ReLU stops its gradient.
NOWHERE = 4


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """A copy with channels_last strides, also where sizes of 1 leave others possible."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def max_pool_relu(x, indexed):
    """(B, C, H, W), H and W even -> the values (B, C, H/2, W/2); the index, uint8, or empty.

    The index is the place of the maximum in its window, 2 row + column, or ``NOWHERE``.
    """
    pooled, place = F.max_pool2d(x, 2, return_indices=True)
    out = _channels_last(F.relu(pooled))
    if not indexed:
        empty = x.new_empty((0, x.shape[1], 1, 1), dtype=torch.uint8)
        return out, _channels_last(empty)
    width = x.shape[3]
    place = 2 * (place // width % 2) + place % width % 2
    return out, _channels_last(torch.where(out <= 0, NOWHERE, place).to(torch.uint8))


def max_pool_relu_backward(grad, index):
    """The gradient for x (B, C, 2H, 2W) from that for the output (B, C, H, W)."""
    batch, channels, rows, columns = grad.shape
    out = torch.empty(
        (batch, channels, 2 * rows, 2 * columns),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last,
    )
    for place in range(NOWHERE):
        out[:, :, place // 2 :: 2, place % 2 :: 2] = torch.where(index == place, grad, 0)
    return out


def pooled_image_gradient(grad, index, weight):
    """The gradient of max_pool_relu(conv2d(image, weight)) for images (B, 1, H, W).

    Sums are in float32; float64 for float64 gradients.
    """
    wide = arithmetic_dtype(grad.dtype)
    unpooled = max_pool_relu_backward(grad.to(wide), index)
    return F.conv_transpose2d(unpooled, weight.to(wide)).to(grad.dtype).contiguous()
