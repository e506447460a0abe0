"""Calls of max_pool_relu, its backward, and pooled_image_gradient."""

from __future__ import annotations

import torch

from drf_fast.backends.native.library import load, threads_for
from drf_fast.runtime.tensors import DTYPE_NAMES

# Elements below which waking another thread costs more than it saves.
_PER_THREAD = 16384
_CHANNELS_LAST = torch.channels_last
KERNEL_SIZES = (3, 5, 7)
FLOATS = (torch.float32, torch.bfloat16)


def is_supported(x: torch.Tensor) -> bool:
    """Whether ``max_pool_relu`` takes x: (B, C, H, W) on the CPU, channels_last, H and W even."""
    return (
        x.device.type == "cpu"
        and x.dtype in FLOATS
        and x.dim() == 4
        and x.numel() > 0
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.is_contiguous(memory_format=_CHANNELS_LAST)
    )


def max_pool_relu(x: torch.Tensor, indexed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """relu(max_pool2d(x, 2)), channels_last, and the indices of its maxima (uint8, or empty)."""
    if not is_supported(x):
        raise ValueError(
            "max_pool_relu: expected float32 or bfloat16 images (B, C, H, W) of even size on the "
            f"CPU in channels_last order, got {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2)
    out = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=_CHANNELS_LAST)
    index = torch.empty(
        shape if indexed else (0, channels, 1, 1),
        dtype=torch.uint8,
        device="cpu",
        memory_format=_CHANNELS_LAST,
    )
    load().max_pool_relu(
        x=x.data_ptr(),
        out=out.data_ptr(),
        index=index.data_ptr() if indexed else 0,
        dtype=DTYPE_NAMES[x.dtype],
        batch=batch,
        rows=height // 2,
        columns=width // 2,
        channels=channels,
        threads=threads_for(out.numel(), _PER_THREAD),
    )
    return out, index


def max_pool_relu_backward(grad: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The gradient of x (B, C, 2H, 2W) from the gradient of the output (B, C, H, W)."""
    grad = _in_layout_of_index(grad, index)
    batch, channels, rows, columns = grad.shape
    shape = (batch, channels, 2 * rows, 2 * columns)
    out = torch.empty(shape, dtype=grad.dtype, device="cpu", memory_format=_CHANNELS_LAST)
    load().max_pool_relu_backward(
        grad=grad.data_ptr(),
        index=index.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[grad.dtype],
        batch=batch,
        rows=rows,
        columns=columns,
        channels=channels,
        threads=threads_for(grad.numel(), _PER_THREAD),
    )
    return out


def pooled_image_gradient(
    grad: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The gradient of max_pool_relu(conv2d(image, weight)) for images (B, 1, H, W).

    Args:
        grad: (B, C, (H - k + 1) / 2, (W - k + 1) / 2).
        index: what ``max_pool_relu`` returned.
        weight: (C, 1, k, k), k one of ``KERNEL_SIZES``, of the dtype of grad.
    """
    grad = _in_layout_of_index(grad, index)
    batch, channels, rows, columns = grad.shape
    k = weight.shape[-1]
    if (
        weight.shape != (channels, 1, k, k)
        or k not in KERNEL_SIZES
        or weight.dtype != grad.dtype
        or weight.device != grad.device
    ):
        raise ValueError(
            f"pooled_image_gradient: expected kernels ({channels}, 1, k, k) of {grad.dtype}, k one "
            f"of {KERNEL_SIZES}, got {weight.dtype} {tuple(weight.shape)} on {weight.device}"
        )
    kernels = weight.reshape(channels, k, k).contiguous()
    out = torch.empty(
        (batch, 1, 2 * rows + k - 1, 2 * columns + k - 1), dtype=grad.dtype, device="cpu"
    )
    load().pooled_image_gradient(
        grad=grad.data_ptr(),
        index=index.data_ptr(),
        weight=kernels.data_ptr(),
        out=out.data_ptr(),
        dtype=DTYPE_NAMES[grad.dtype],
        batch=batch,
        rows=rows,
        columns=columns,
        channels=channels,
        k=k,
        threads=threads_for(grad.numel(), _PER_THREAD),
    )
    return out


def _in_layout_of_index(grad: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The gradient in channels_last order, as the index: the kernels read both in parallel."""
    if (
        grad.device.type != "cpu"
        or grad.dtype not in FLOATS
        or grad.shape != index.shape
        or index.dtype != torch.uint8
        or not index.is_contiguous(memory_format=_CHANNELS_LAST)
    ):
        raise ValueError(
            "max_pool_relu: expected a gradient of the shape of its index, got "
            f"{grad.dtype} {tuple(grad.shape)} on {grad.device} and {tuple(index.shape)}"
        )
    return grad.contiguous(memory_format=_CHANNELS_LAST)
