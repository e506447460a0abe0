"""Warnings of noise levels and strengths that are not in the units of the images."""

from __future__ import annotations

import math
import sys
import warnings

MOST_SIGMA = 4.0  # of images in [0, 1]: beyond it nothing of them is left


def warn(message: str) -> None:
    """Warn at the line of the user's code that called the package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("drf_fast."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def warn_of_sigma(sigma: float, width: float = 1.0) -> bool:
    """Warn of a noise level in other units than images whose range is ``width`` wide; whether it
    did."""
    if sigma <= MOST_SIGMA * width:
        return False
    warn(
        f"sigma {sigma:g} is in the units of the images, whose values span {width:g}: expected at "
        f"most {MOST_SIGMA * width:g}; divide a noise level counted in 0..255 by 255 "
        f"({sigma * width / 255:.4g})"
    )
    return True


def warn_of_epsilon(epsilon: float, width: float, pixels: int) -> None:
    """Warn of a strength beyond the diameter of the images, which then bounds nothing."""
    diameter = width * math.sqrt(pixels)
    if epsilon > diameter:
        warn(
            f"epsilon {epsilon:g} is an L2 distance in the units of the images, whose values span "
            f"{width:g}: expected at most their diameter, {diameter:.4g}; published programs "
            f"divide theirs by 256 ({epsilon * width / 256:.4g})"
        )
