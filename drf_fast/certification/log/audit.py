"""Recomputing the certificates of a log from its counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from drf_fast.certification.log.rows import Row, round_down
from drf_fast.certification.log.sidecar import sidecar
from drf_fast.config.choices import Budget
from drf_fast.config.limits import LEAST_ALPHA, MOST_TRIALS
from drf_fast.errors import InputError

# Backends may differ in the last bits of a double, so a log made with one and read with another may
# differ in its last decimal. Larger differences are refused.
_LAST_BITS, _LAST_DECIMAL = 4, 1e-12
# Ranges of a valid configuration, ends included; other values mean a damaged file.
BUDGETS = get_args(Budget)
_LIMITS = {"sigma": (1e-9, 1e9), "n": (1, MOST_TRIALS), "alpha": (LEAST_ALPHA, 1 - 1e-16)}


def is_usable(key: str, value: Any) -> bool:
    """Whether ``value`` is a number that can be the sigma, n or alpha (``key``) of a log."""
    least, most = _LIMITS[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= value <= most


def certificates(
    config: dict[str, Any], counts: Sequence[int], trials: Sequence[int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """``p_lower`` and L2 radius of each count, float64, recomputed with the settings in ``config``.

    None if these are incomplete: no usable sigma, n or alpha, or an unknown budget.
    """
    if not all(is_usable(key, config.get(key)) for key in _LIMITS):
        return None
    sigma, n, alpha = (config[key] for key in ("sigma", "n", "alpha"))
    import torch

    from drf_fast.certification.stopping import certificate
    from drf_fast.functional import certified_radius, clopper_pearson_lower

    budget = config.get("budget", "fixed")
    distance = _distance(config.get("sound"))
    if distance is None:
        return None
    if budget == "fixed" and distance == 0.0:  # vectorised, for logs of thousands of lines
        successes = torch.tensor(counts, dtype=torch.int64, device="cpu")
        drawn = torch.tensor(trials, dtype=torch.int64, device="cpu")
        p_lower = clopper_pearson_lower(successes, drawn, alpha)
        return p_lower.numpy(), certified_radius(successes, drawn, sigma=sigma, alpha=alpha).numpy()
    if budget not in BUDGETS:
        return None
    found = [
        certificate(count, drawn, n, sigma=sigma, alpha=alpha, budget=budget, distance=distance)
        for count, drawn in zip(counts, trials, strict=True)
    ]
    return np.array([proof.p_lower for proof in found]), np.array([proof.radius for proof in found])


def _distance(sound: Any) -> float | None:
    """By how much the bounds of a log are lowered for its noise; None if the entry is invalid."""
    if not sound:
        return 0.0
    tau, pixels = (sound.get(key) if isinstance(sound, dict) else None for key in ("tau", "pixels"))
    if type(tau) is not float or type(pixels) is not int or not (0 < tau < 1 and pixels > 0):
        return None
    from drf_fast.certification.noise import total_distance

    return total_distance(tau, pixels)


def refuse_other_certificates(path: Path, config: dict[str, Any], rows: Sequence[Row]) -> None:
    """Refuse a log whose radii, bounds or abstentions do not follow from its counts.

    Radii are multiples of the noise level as it is drawn; logs of older versions, of sigma.

    Raises:
        InputError: names the line, the logged certificate and the recomputed one.
    """
    pairs = sorted({(row.count, row.n) for row in rows if row.n > 0})
    if not pairs:
        return
    counts, trials = zip(*pairs, strict=True)
    try:
        computed = [certificates(at, counts, trials) for at in _as_drawn_and_as_recorded(config)]
    except ValueError as error:  # more samples than n, or than a bound can be computed for
        raise InputError(
            f"{path}: the counts do not fit {sidecar(path).name}: {error}; restore the pair that "
            "belongs together"
        ) from error
    known = [dict(zip(pairs, zip(*found, strict=True), strict=True)) for found in computed if found]
    if not known:
        return
    for number, row in enumerate(rows, start=2):
        if row.n == 0:
            continue
        (p_lower, radius), *older = (of_pair[row.count, row.n] for of_pair in known)
        abstains = row.predict == -1
        same = abstains or any(_same(row.radius, r) for r in (radius, *(r for _, r in older)))
        if abstains != (radius == 0) or not same:
            name, expected, got = "radius", radius, row.radius
        elif not _same(row.p_lower, p_lower):
            name, expected, got = "p_lower", p_lower, row.p_lower
        else:
            continue
        raise InputError(
            f"{path}: line {number} is not what its count certifies: expected {name} "
            f"{round_down(expected)} for {row.count} of {row.n} samples ({sidecar(path).name}: "
            f"sigma {config['sigma']}, alpha {config['alpha']}), got {round_down(got)} with "
            f"predict {row.predict}; restore the pair that belongs together or certify again"
        )


def _as_drawn_and_as_recorded(config: dict[str, Any]) -> list[dict[str, Any]]:
    """``config`` with the noise level of which radii are multiples, and itself if that differs."""
    if config.get("sound") or not is_usable("sigma", config.get("sigma")):
        return [config]
    from drf_fast.certification.noise import drawn_sigma

    drawn = drawn_sigma(config["sigma"])
    return [config] if drawn == config["sigma"] else [{**config, "sigma": drawn}, config]


def _same(logged: float, computed: float) -> bool:
    slack = _LAST_BITS * float(np.spacing(computed))
    return computed - _LAST_DECIMAL - slack <= logged <= computed + slack
