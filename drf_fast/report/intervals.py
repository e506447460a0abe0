"""Confidence intervals of shares of images."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95  # the probability with which lower <= share <= upper


def clopper_pearson(successes: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact two-sided confidence interval of a share, with level ``LEVEL``.

    Lower: the p with P(Bin(images, p) >= successes) = (1 - LEVEL)/2; upper: the p with
    P(Bin(images, p) <= successes) equal to the same, which is 1 - the lower bound for the failures.

    The mean over training seeds of a number of images need not be whole; it is rounded down for
    the lower and up for the upper bound. The seeds classify the same images, so they do not
    increase the number of images.

    Args:
        successes: numbers of images, 0 to ``images``, float64 of any shape.
        images: total number of images.

    Returns:
        lower and upper, float64 of the shape of ``successes``.

    Reference:
        Clopper, Pearson 1934.
    """
    import torch

    from drf_fast.functional import clopper_pearson_lower

    def lower(counts: np.ndarray) -> np.ndarray:
        whole = torch.from_numpy(np.asarray(counts, dtype=np.int64))
        return clopper_pearson_lower(whole, images, (1 - LEVEL) / 2).numpy()

    # A share times the number of images may differ from a whole number by rounding.
    exact = np.round(successes, 9)
    return lower(np.floor(exact)), 1.0 - lower(images - np.ceil(exact))
