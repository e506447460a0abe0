"""The noise of certificates: Gaussian in floating point, or Gaussian in whole levels (sound).

A sound certificate rests on two things beside Cohen's theorem: that the counter generator's words
are independent and uniform, and that the network is a function of one row. The second is tested,
on the network and the machine at hand, by ``check_rows``; for it to hold, all forward passes of a
run that count for a bound have the same number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from drf_fast import functional
from drf_fast.backends.reference.levels import LevelTable, level_table
from drf_fast.certification import inputs
from drf_fast.ops import level_checks

# In every log of sound certificates; docs/certification.md says more.
ASSUMPTIONS = (
    "the words of Philox4x32-10 are independent and uniform; the network is a function of one row, "
    "tested on rows_tested rows before the first image"
)
_ROWS = 256  # tested, at least


class GaussianNoise:
    """x + sigma z in the dtype of x, see ``functional.noisy_repeat``.

    Args:
        sigma: noise level in pixel units.
        seed: names the noise together with the image id.
    """

    sound = False

    def __init__(self, sigma: float, seed: int) -> None:
        self.sigma, self.seed = sigma, seed
        self._warned = False

    def images(self, x: Any) -> torch.Tensor:
        """The images that ``copies`` takes, of what a user passes; warns once of odd ranges."""
        x = inputs.images(x)
        self._warned = self._warned or inputs.warn_if_far(x)
        return x

    def copies(
        self,
        x: torch.Tensor,
        num: int,
        image_ids: torch.Tensor,
        offset: int | torch.Tensor,
        stream: str,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """(B*num, ...) noisy rows; arguments as in ``functional.noisy_repeat``.

        ``dtype`` is what the network takes: where that is exact, the copies have it.
        """
        return functional.noisy_repeat(
            x,
            self.sigma,
            num,
            seed=self.seed,
            image_ids=image_ids,
            sample_offset=offset,
            stream=stream,
        )

    def distance(self, pixels: int) -> float:
        """What the noise takes off a probability: nothing is known, and nothing taken off."""
        return 0.0


class LevelNoise(GaussianNoise):
    """float32(u + R)/255 for images of 8 bits, see ``functional.noisy_levels``."""

    sound = True

    def __init__(self, sigma: float, seed: int) -> None:
        super().__init__(sigma, seed)
        self.tau = level_table(sigma).distance
        self._table: LevelTable | None = None

    def images(self, x: Any) -> torch.Tensor:
        return inputs.level_images(x)

    def copies(
        self,
        x: torch.Tensor,
        num: int,
        image_ids: torch.Tensor,
        offset: int | torch.Tensor,
        stream: str,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        # Kept, for a CUDA graph goes on reading it.
        self._table = level_table(self.sigma, x.device)
        return functional.noisy_levels(
            x,
            self.sigma,
            num,
            seed=self.seed,
            image_ids=image_ids,
            sample_offset=offset,
            stream=stream,
            dtype=dtype if dtype in level_checks.DTYPES else torch.float32,
        )

    def distance(self, pixels: int) -> float:
        """D tau, rounded up: the most by which a probability under this noise differs from the
        one under Gaussian noise rounded to levels."""
        return total_distance(self.tau, pixels)


def total_distance(tau: float, pixels: int) -> float:
    """D tau, rounded up."""
    return math.nextafter(tau * pixels, math.inf)


class RowTest(NamedTuple):
    """What ``check_rows`` has seen to hold: so many rows, in passes of so many."""

    rows: int
    batch_size: int


def check_rows(
    forward: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, size: int
) -> RowTest:
    """Refuse a network whose logits of a row depend on its place or on the other rows.

    Passes of ``size`` rows, at least two and 256 rows: again as they were, permuted within and
    across the passes, and the first half of a pass with zeros behind it. All logits must keep
    their bits.

    Args:
        forward: (size, ...) to (size, K).
        rows: the rows of these passes, ``rows_to_test(size)`` of them.
        size: rows of a pass.

    Raises:
        ValueError: they do not; says how many differ, and the way out.
    """

    def logits(of: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(part) for part in of.split(size)])

    first = logits(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)
    half = (size + 1) // 2
    filled = torch.cat([rows[:half], torch.zeros_like(rows[half:size])])
    for name, got, expected in (
        ("in the same batch again", logits(rows), first),
        ("in another place among other rows", logits(rows[order]), first[order]),
        ("in a batch filled up with zeros", logits(filled)[:half], first[:half]),
    ):
        different = _different_rows(got, expected)
        if different:
            raise ValueError(
                "a sound certificate needs a network that is a function of one row: expected equal "
                f"logits, got other ones for {different} of {len(got)} rows {name} (batches of "
                f"{size}); try another batch size, memory format, precision or number of threads, "
                "or certify without sound"
            )
    return RowTest(len(rows), size)


def rows_to_test(size: int) -> int:
    """Rows of as many passes as ``check_rows`` asks for."""
    return size * max(2, -(-_ROWS // size))


def _different_rows(got: torch.Tensor, expected: torch.Tensor) -> int:
    """Rows that differ in a bit; NaNs are compared as what they are."""
    pairs = (t.contiguous().view(torch.uint8).reshape(len(t), -1) for t in (got, expected))
    return int(torch.ne(*pairs).any(1).sum())
