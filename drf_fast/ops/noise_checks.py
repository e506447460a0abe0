"""Checks of what names the noise of a batch: the seed, the image ids, the first sample."""

from __future__ import annotations

from typing import Any

import torch

from drf_fast.ops import checks as check
from drf_fast.runtime.fresh import fresh_key
from drf_fast.runtime.values import may_read


def noise_source(
    seed: Any, image_ids: Any, batch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The key (int64 0-dim) and the image ids (int64 (B,)) that name a batch's noise."""
    if seed is None:
        key = fresh_key()
        if image_ids is None:
            return key, torch.arange(batch, device=device)
    elif isinstance(seed, torch.Tensor):
        if check.has_value(seed, "seed").dim() != 0 or seed.dtype != torch.int64:
            raise ValueError(
                f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} of shape "
                f"{tuple(seed.shape)}"
            )
        key = seed
    else:
        key = check.on_cpu(signed_key(seed), torch.int64)
    if image_ids is None:
        raise ValueError(
            "an explicit seed needs image_ids, a (B,) int64 tensor that names each image (its "
            "index in the data set): without them every batch would be images 0..B-1 and share "
            "one noise; pass image_ids, or leave seed=None"
        )
    check.is_tensor(image_ids, "image_ids")
    if image_ids.dtype != torch.int64 or image_ids.shape != (batch,):
        raise ValueError(
            f"image_ids must be int64 of shape ({batch},), got {image_ids.dtype} of shape "
            f"{tuple(image_ids.shape)}"
        )
    check.same_device(device, image_ids=image_ids)
    if may_read(device):
        low, high = _min_and_max(image_ids)
        if low < 0 or high >= 2**32:
            raise ValueError(f"image_ids must lie in 0..2^32-1, got values from {low} to {high}")
    return key, image_ids


def shared_source(
    seed: Any, image_ids: Any, batch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``noise_source``, for one of several steps on the same noise: it must be named."""
    if seed is None:
        raise ValueError(
            "adversary_step needs the seed that all steps of an attack share, got seed=None, which "
            "would draw new noise in every step; pass seed and image_ids, the same in each step, "
            "or use attack, which draws one seed for all its steps"
        )
    return noise_source(seed, image_ids, batch, device)


def _min_and_max(ids: torch.Tensor) -> tuple[int, int]:
    """The smallest and the largest id."""
    if ids.numel() > 32:  # below, a Python list is faster
        low, high = torch.aminmax(ids)
        return int(low), int(high)
    values = ids.tolist()
    return min(values), max(values)


def signed_key(seed: Any) -> int:
    """A 64-bit seed reinterpreted as a signed integer, as an int64 tensor holds it."""
    seed = check.integer(seed, "seed must be an int or a 0-dim int64 tensor")
    if not -(2**63) <= seed < 2**64:
        got = seed if abs(seed) < 2**80 else check.type_and_value(seed)
        raise ValueError(f"seed must fit 64 bits, -2^63 <= seed < 2^64, got {got}")
    return seed - 2**64 if seed >= 2**63 else seed


def first_sample(value: Any, num_samples: int, device: torch.device) -> torch.Tensor:
    """As ``sample_offset``, but the default 0 is made on the device of the images.

    A copy from the CPU could not be captured in a CUDA graph.
    """
    if type(value) is int and value == 0:
        if device.type == "cpu":
            return check.on_cpu(0, torch.int64)
        return torch.zeros((), dtype=torch.int64, device=device)
    return sample_offset(value, num_samples)


def sample_offset(value: Any, num_samples: int) -> torch.Tensor:
    """The index of the first sample as a 0-dim int64 tensor."""
    tensor = value
    if not isinstance(value, torch.Tensor):
        tensor = check.on_cpu(check.count(value, "sample_offset", 0), torch.int64)
    if check.has_value(tensor, "sample_offset").dim() != 0 or tensor.dtype != torch.int64:
        raise ValueError(
            f"sample_offset must be an int or a 0-dim int64 tensor, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    if may_read(tensor.device):
        check.count(int(tensor), "sample_offset", 0, 2**32 - num_samples)
    return tensor
