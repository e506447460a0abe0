"""Shared by the fuzz tests: tensors of any layout and values, calls, comparison of results.

``DRF_FAST_FUZZ=20`` in the environment runs 20 times as many examples, new ones each time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import torch

import drf_fast
from drf_fast.backends.native import library

EFFORT = int(os.environ.get("DRF_FAST_FUZZ", "1"))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BACKENDS = ("native", "reference")
EXTREMES = (math.inf, -math.inf, math.nan, 3e38, -3e38, 1e30, 60000.0, 1e-40, -1e-45, 5e-324, -0.0)


def draw_instruction_set(data: Any) -> None:
    library.load().use_isa(data.draw(st.sampled_from(["avx512", "avx2", "baseline"])))


def fuzz(examples: int) -> Callable[[Any], Any]:
    return hypothesis.settings(
        max_examples=examples * EFFORT,
        derandomize=EFFORT == 1,
        database=None,
        deadline=None,
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.data_too_large,
        ],
    )


# ------------------------------------------------------------------------------------ the tensors


class Drawn(NamedTuple):
    """A view, its whole storage, and a copy of the storage from before the calls."""

    view: torch.Tensor
    storage: torch.Tensor
    before: torch.Tensor

    def __repr__(self) -> str:
        shown = self.view if self.view.numel() <= 8 else self.view.flatten()[:8]
        return f"{tuple(self.view.shape)} with strides {self.view.stride()}: {shown}"

    def on_meta(self) -> torch.Tensor:
        view = self.view
        return torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device="meta")

    def assert_untouched(self) -> None:
        assert torch.equal(self.storage.view(torch.uint8), self.before.view(torch.uint8))


@st.composite
def laid_out(draw: Any, values: torch.Tensor, poison: float = math.nan) -> Drawn:
    """The values in a drawn order of dimensions, with gaps, an offset and zero strides.

    A zero stride makes the values of one dimension equal: the first of them.
    """
    dims = values.dim()
    order, gaps, offset, expanded = list(range(dims)), [1] * dims, 0, None
    kind = draw(st.sampled_from(["plain", "channels_last", "any"]))
    if kind == "channels_last" and dims == 4:
        order = [0, 2, 3, 1]
        gaps[draw(st.integers(0, 3))] = draw(st.integers(1, 2))
    elif kind == "any":
        order = draw(st.permutations(order))
        gaps = [draw(st.integers(1, 2)) for _ in range(dims)]
        offset = draw(st.integers(0, 5))
        expanded = draw(st.one_of(st.none(), st.integers(0, dims - 1)))
    outer = [values.shape[d] * gaps[d] for d in order]
    size = math.prod(outer)
    storage = torch.full((offset + size + 3,), poison, dtype=values.dtype)
    view = (
        storage[offset : offset + size].view(outer).permute([order.index(d) for d in range(dims)])
    )
    view = view[tuple(slice(None, None, gap) for gap in gaps)]
    view.copy_(values)
    if expanded is not None and values.shape[expanded]:
        view = view.narrow(expanded, 0, 1).expand(values.shape)
    return Drawn(view, storage, storage.clone())


@st.composite
def floats(draw: Any, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Drawn:
    """Normals times ``scale``; in half of the cases some are replaced by extreme values."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    size = values.numel()
    if size and draw(st.booleans()):
        for extreme in draw(st.lists(st.sampled_from(EXTREMES), max_size=4)):
            values.view(-1)[draw(st.integers(0, size - 1))] = extreme
    return draw(laid_out(values.to(dtype)))


@st.composite
def integers(draw: Any, shape: tuple[int, ...], low: int, high: int, poison: int = -7) -> Drawn:
    """int64 in [low, high], its ends with increased probability."""
    element = st.one_of(st.sampled_from([low, high]), st.integers(low, high))
    size = math.prod(shape)
    values = torch.tensor(draw(st.lists(element, min_size=size, max_size=size)), dtype=torch.int64)
    return draw(laid_out(values.reshape(shape), poison))


def tensors_of(*drawn: Drawn) -> Iterator[torch.Tensor]:
    return (each.view for each in drawn)


NUMBERS = st.sampled_from([0.25, 1.0, 1e-3, 12.0, 1e3, 1e-30, 1e30])
SHAPES = st.one_of(
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 33), st.integers(1, 33)),
    st.tuples(st.integers(1, 2), st.sampled_from([31, 32, 33, 1023, 4097, 70_001])),
    st.lists(st.integers(1, 3), min_size=5, max_size=6),
).map(tuple)
SEEDS = st.one_of(st.none(), st.sampled_from([-(2**63), 2**64 - 1]), st.integers(-(2**63), 2**64))
CLASSES = st.one_of(
    st.integers(2, 70), st.sampled_from([100, 127, 1000, 1023, 1024, 1025, 4099, 50_021])
)


# -------------------------------------------------------------------------------------- the calls


class Refusal(NamedTuple):
    kind: type[Exception]
    message: str


def run(backend: str, call: Callable[[], Any]) -> Any:
    """The result of the call, or its one-sentence refusal; any other exception fails the test."""
    with drf_fast.use_backend(backend):
        try:
            return call()
        except (TypeError, ValueError) as error:
            message = str(error)
            assert "\n" not in message and 20 < len(message) < 400
            return Refusal(type(error), message)


def flat(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def assert_alike(*results: Any) -> None:
    """The same refusal, or tensors of the same shapes, strides and dtypes."""
    first, *others = results
    for other in others:
        if isinstance(first, Refusal) or isinstance(other, Refusal):
            assert first == other
            continue
        for a, b in zip(flat(first), flat(other), strict=True):
            assert (a.shape, a.dtype, strides(a)) == (b.shape, b.dtype, strides(b))


def strides(tensor: torch.Tensor) -> list[int]:
    """The strides that matter: those of dimensions larger than 1."""
    used = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return used if tensor.numel() else []


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal, NaN to NaN; the sign of 0 counts."""
    assert torch.equal(a.isnan(), b.isnan())
    a, b = a.nan_to_num(0.0, math.inf, -math.inf), b.nan_to_num(0.0, math.inf, -math.inf)
    assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
