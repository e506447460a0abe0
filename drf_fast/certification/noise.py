"""The noise of certificates: Gaussian in floating point, or Gaussian in whole levels (sound).

A sound certificate rests on two assumptions beside Cohen's theorem: the words of the counter-based
generator are independent and uniform, and the network is a function of one row. The second is
tested by ``check_rows``, with the network on the machine of the run; for the test to cover a run,
all forward passes that count for a bound have the same number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from drf_fast import functional
from drf_fast.certification import inputs
from drf_fast.errors import InputError
from drf_fast.ops import level_checks
from drf_fast.runtime.level_table import level_table
from drf_fast.runtime.logits import logits_agree
from drf_fast.runtime.memory import is_out_of_memory

# Recorded in every log of sound certificates; see docs/certification.md.
ASSUMPTIONS = (
    "the words of Philox4x32-10 are independent and uniform; the network is a function of one row, "
    "tested on rows_tested rows before the first image"
)
_ROWS = 256  # to be tested, at least
# Copies of one row, and passes of them, to see whether rows of a pass share a random number: one
# that changes the logits with probability q is missed with probability (1 - q)^15, about.
_COPIES, _PASSES = 16, 16


def drawn_sigma(sigma: float) -> float:
    """min(sigma, float32(sigma)): a lower bound of the noise level as it is drawn.

    Noise in float32 has the level float32(sigma), which for sigma 0.12 or 0.7 lies below sigma, by
    2^-24 of it at most; noise in float64 has sigma itself. A radius grows with the level, so that
    computed with the smaller of both holds for either.

    Raises:
        ValueError: float32(sigma) is 0.
    """
    drawn = min(sigma, float(torch.tensor(sigma, dtype=torch.float32, device="cpu")))
    if drawn == 0.0:
        raise ValueError(f"sigma must be a noise level above 0 in float32, got {sigma:g}; raise it")
    return drawn


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

    @property
    def drawn_sigma(self) -> float:
        """The noise level of which radii are multiples."""
        return drawn_sigma(self.sigma)

    def images(self, x: Any) -> torch.Tensor:
        """The user's images checked and converted for ``copies``; warns once of other units."""
        x = inputs.images(x)
        self._warned = self._warned or inputs.warn_of_other_units(x, self.sigma)
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

        ``dtype``, that of the network's input, is used only where the conversion is exact.
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
        """By how much bounds are lowered for the noise: 0, rounding is not accounted for."""
        return 0.0


class LevelNoise(GaussianNoise):
    """float32(u + R)/255 for images of 8 bits, see ``functional.noisy_levels``."""

    sound = True

    def __init__(self, sigma: float, seed: int) -> None:
        super().__init__(sigma, seed)
        self.tau = level_table(sigma).distance

    @property
    def drawn_sigma(self) -> float:
        """sigma itself, of which the thresholds of the levels are made."""
        return self.sigma

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
    """The size of a passed test: number of rows, and rows of each forward pass."""

    rows: int
    batch_size: int


def check_rows(
    forward: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, size: int
) -> RowTest:
    """Refuse a network whose logits of a row depend on its position or on the other rows.

    At least two passes of ``size`` rows and 256 rows are repeated unchanged, permuted within and
    across the passes, and with the second half of a pass replaced by zeros. All logits must be
    equal bit for bit.

    Args:
        forward: (size, ...) to (size, K).
        rows: the rows of these passes, ``rows_to_test(size)`` of them.
        size: rows of a pass.

    Raises:
        ValueError: some differ; says how many, and what to try.
    """

    def logits(rows: torch.Tensor) -> torch.Tensor:
        # Copies, since a network may normalise its input in place.
        return torch.cat([forward(part.clone()) for part in rows.split(size)])

    first = logits(rows)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0), device="cpu")
    order = shuffled.to(rows.device)
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
    """The number of rows that ``check_rows`` needs: of whole passes, at least two."""
    return size * max(2, -(-_ROWS // size))


def check_alone(
    forward: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    bf16: bool = False,
    draws: bool = True,
) -> bool:
    """Refuse a network whose votes are not independent samples; by more than rounding.

    The logits of a row must not depend on the other rows, as they do in a module in training mode
    that ``eval`` does not reach, inside a callable or a list, and in batch normalisation without
    running statistics: one half of a batch is replaced, by zeros and by copies of one row. Nor may
    all rows of a pass share a random number: copies of one row in several passes.

    A network may draw random numbers for each row. Of torch's generators both passes get the same;
    one that draws its own cannot be judged.

    Args:
        forward: (N, ...) to (N, K).
        rows: (N, ...), of one forward pass, two at least.
        bf16: whether it rounds to bfloat16.
        draws: whether to look for shared random numbers, too.

    Returns:
        Whether it could be judged.

    Raises:
        InputError: they are not; says why, and what to do.
    """
    devices = [rows.device] if rows.device.type == "cuda" else []

    def logits(rows: torch.Tensor, skipped: int = 0) -> torch.Tensor:
        with torch.random.fork_rng(devices):
            for device in ("cpu", *devices):
                torch.rand(skipped, device=device)  # so that the network draws other numbers
            return forward(rows.clone())  # a network may normalise its input in place

    expected = logits(rows)
    if draws:
        _refuse_shared_draws(logits, rows, bf16)
    half = (len(rows) + 1) // 2
    for kept, beside in (
        (slice(None, half), [rows[:half], torch.zeros_like(rows[half:])]),
        (slice(half, None), [rows[:1].expand_as(rows[:half]), rows[half:]]),
    ):
        got = logits(torch.cat(beside))[kept]
        if logits_agree(got, expected[kept], bf16):
            continue
        if not logits_agree(logits(rows), expected, bf16):
            return False  # changes without a cause
        raise InputError(
            "votes are independent samples only of a network in eval mode: expected equal logits "
            "of a row beside any other rows, got other ones for "
            f"{_different_rows(got, expected[kept])} of {len(got)} rows; call eval() of modules "
            "inside a callable or a list, and leave out layers that use statistics of the batch"
        )
    return True


def _refuse_shared_draws(
    logits: Callable[[torch.Tensor, int], torch.Tensor], rows: torch.Tensor, bf16: bool
) -> None:
    def of_copies(number: int) -> list[torch.Tensor]:
        copies = rows[:1].expand(number, *rows.shape[1:])
        return [logits(copies, skipped) for skipped in range(_PASSES)]

    try:
        passes = of_copies(min(len(rows), _COPIES))
    except Exception as error:  # it takes batches of one size only
        if is_out_of_memory(error):
            raise
        passes = of_copies(len(rows))
    alike = all(logits_agree(got, got[:1].expand_as(got), bf16) for got in passes)
    if alike and not all(logits_agree(got, passes[0], bf16) for got in passes):
        raise InputError(
            "votes are independent samples only of a network that changes for every row or never: "
            "expected equal logits of copies of one image in all forward passes, got equal ones "
            "within a pass and others in the next; draw random numbers for each row, and keep the "
            "network's state fixed"
        )


def _different_rows(got: torch.Tensor, expected: torch.Tensor) -> int:
    """The number of rows that differ in a bit; equal NaNs count as equal."""
    pairs = (t.contiguous().view(torch.uint8).reshape(len(t), -1) for t in (got, expected))
    return int(torch.ne(*pairs).any(1).sum())
