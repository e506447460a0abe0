"""Noise in whole levels of 8-bit images, for sound certificates; part of ``functional``."""

from __future__ import annotations

import torch

from drf_fast.ops import checks as check
from drf_fast.ops import level_checks, noise_checks, schemas
from drf_fast.runtime.randomness import STREAMS


def noisy_levels(
    u: torch.Tensor,
    sigma: float,
    num_samples: int,
    *,
    seed: int | torch.Tensor | None = None,
    image_ids: torch.Tensor | None = None,
    sample_offset: int | torch.Tensor = 0,
    stream: str = "train",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """m noisy copies of each 8-bit image: row b*m + i is float32(u_b + R)/255, R whole levels.

    P(R = r) = Phi((r + 1/2)/s) - Phi((r - 1/2)/s), s = 255 sigma: Gaussian noise, rounded. Adding
    whole levels commutes with rounding, so these are the Gaussian-smoothed images of a classifier
    that rounds its input to levels first, and certificates hold for the program as it runs, which
    ``noisy_repeat`` cannot promise. The distribution of R is known exactly; its total variation
    distance from the one above is below 1e-16 at sigma 0.5 (``runtime/level_table.py``). R is
    a function of seed, stream, image id and sample, as the noise of ``noisy_repeat``, and
    independent of it.

    Args:
        u: (B, ...) images, uint8.
        sigma: standard deviation in pixel units, in (0, 16]; a number, of which a table is made.
        num_samples, seed, image_ids, sample_offset, stream: as in ``noisy_repeat``.
        dtype: of the output; bfloat16 and float16 are rounded once more, from float32.

    Returns:
        (B*m, ...), image-major, in the memory format of u.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or range; a seed without image_ids.

    Reference:
        Voracek, Hein 2023, Sound Randomized Smoothing in Floating-Point Arithmetic.
    """
    check.untransformed("noisy_levels")
    level_checks.images(u)
    level_checks.dtype(dtype)
    num_samples = check.count(num_samples, "num_samples")
    check.choice(stream, "stream", STREAMS)
    scale = level_checks.sigma(sigma)
    key, ids = noise_checks.noise_source(seed, image_ids, u.shape[0], u.device)
    offset = noise_checks.first_sample(sample_offset, num_samples, u.device)
    return schemas.noisy_levels(u, scale, key, ids, offset, num_samples, stream, dtype)
