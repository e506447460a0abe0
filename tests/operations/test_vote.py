"""vote: argmax and per-image histogram, on every backend, against a plain Python loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch

import drf_fast
from drf_fast.backends.dispatch import use
from drf_fast.backends.native import counting, cuda, library
from drf_fast.backends.reference import operations as reference

Vote = Callable[[torch.Tensor, torch.Tensor], object]
needs_native = pytest.mark.skipif(
    not library.available(), reason=f"needs the C++ core: {library.why_not()}"
)


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def vote(request: pytest.FixtureRequest) -> Iterator[Vote]:
    """The public vote on one backend."""
    with use(request.param):
        yield drf_fast.vote


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def raw_vote(request: pytest.FixtureRequest) -> Vote:
    """The raw operation, which takes what the public one rejects, such as a single class."""
    return reference.vote if request.param == "reference" else counting.vote


def expected(logits: torch.Tensor, images: int) -> list[list[int]]:
    """The definition, in float64 and plain Python."""
    rows = logits.to(torch.float64).tolist()
    counts = [[0] * logits.shape[1] for _ in range(images)]
    for index, row in enumerate(rows):
        if not any(math.isnan(value) for value in row):
            counts[index * images // len(rows)][row.index(max(row))] += 1
    return counts


def awkward(rows: int, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Few distinct values (so ties abound), infinities of both signs and some NaN."""
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    logits = torch.randint(-3, 4, (rows, classes), generator=generator).to(torch.float64) / 4
    kind = torch.randint(0, 40, (rows, classes), generator=generator)
    for code, value in enumerate((-math.inf, math.inf, 6e4, -6e4)):
        logits[kind == code] = value
    logits[torch.rand(rows, generator=generator) < 0.05, classes - 1] = math.nan
    logits[rows // 2] = -math.inf
    return logits.to(dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("images, per_image", [(1, 1), (1, 257), (3, 16), (64, 5)])
@pytest.mark.parametrize("classes", [2, 3, 8, 10, 17, 100, 1000])
def test_counts_equal_a_plain_float64_loop(vote, dtype, images, per_image, classes):
    logits = awkward(images * per_image, classes, dtype)
    counts = torch.zeros(images, classes, dtype=torch.int64)
    vote(logits, counts)
    assert counts.tolist() == expected(logits, images)


def test_a_single_class_gets_every_vote_but_those_of_nan_rows(raw_vote):
    counts = torch.zeros(2, 1, dtype=torch.int64)
    raw_vote(torch.tensor([[1.0], [-math.inf], [math.nan], [0.0]]), counts)
    assert counts.tolist() == [[2], [1]]


def test_ties_go_to_the_lowest_class(vote):
    logits = torch.tensor([[0.0, 2.0, 2.0], [-math.inf] * 3, [math.inf] * 3, [-0.0, 0.0, -1.0]])
    counts = torch.zeros(1, 3, dtype=torch.int64)
    vote(logits, counts)
    assert counts.tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("place", range(10))
def test_a_row_with_nan_anywhere_votes_for_nobody(vote, place):
    logits = torch.zeros(4, 10)
    logits[:, 9] = math.inf
    logits[1, place] = math.nan
    counts = torch.zeros(1, 10, dtype=torch.int64)
    vote(logits, counts)
    assert counts.sum() == 3


def test_counts_accumulate_over_calls(vote):
    logits = awkward(90, 10, torch.float32)
    whole = torch.zeros(3, 10, dtype=torch.int64)
    vote(logits, whole)
    parts = torch.zeros(3, 10, dtype=torch.int64)
    by_image = logits.reshape(3, 30, 10)
    for chunk in (by_image[:, :7], by_image[:, 7:]):
        vote(chunk.reshape(-1, 10), parts)
    assert torch.equal(parts, whole)


def test_autograd_sees_that_counts_have_changed(vote):
    weights, counts = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, dtype=torch.int64)
    loss = (weights * counts).sum()
    vote(torch.tensor([[0.0, 2.0, 1.0]]), counts)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_counts_of_inference_mode_are_counted_outside(vote):
    with torch.inference_mode():
        counts = torch.zeros(1, 3, dtype=torch.int64)
        vote(torch.tensor([[0.0, 2.0, 1.0]]), counts)
    assert counts.tolist() == [[0, 1, 0]]


def test_counts_above_2_to_the_53_stay_exact(vote):
    counts = torch.tensor([[2**53, 2**62]])
    vote(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), counts)
    assert counts.tolist() == [[2**53 + 1, 2**62 + 1]]


def test_strided_logits_vote_as_their_contiguous_copy(vote):
    storage = awkward(10, 120, torch.float32)
    logits = storage.T[::2]
    assert not logits.is_contiguous()
    counts = torch.zeros(4, 10, dtype=torch.int64)
    vote(logits, counts)
    assert counts.tolist() == expected(logits.contiguous(), 4)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_result_does_not_depend_on_the_thread_count(threads):
    # One image, then many: the work is split over rows in the one case, over images in the other.
    for images in (1, 500):
        logits = awkward(50_000, 10, torch.float32)
        counts = torch.zeros(images, 10, dtype=torch.int64)
        library.load().vote(
            logits.data_ptr(), "float32", 50_000, 10, counts.data_ptr(), images, threads
        )
        single = torch.zeros_like(counts)
        reference.vote(logits, single)
        assert torch.equal(counts, single)


@needs_native
def test_large_work_uses_as_many_threads_as_torch_and_small_work_one():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert library.threads_for(10**9, 1000) == 2
        assert library.threads_for(10, 1000) == 1
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize(
    "logits, counts, error",
    [
        (torch.zeros(4, 3), torch.zeros(2, 4, dtype=torch.int64), ValueError),
        (torch.zeros(5, 3), torch.zeros(2, 3, dtype=torch.int64), ValueError),
        (torch.zeros(4, 3), torch.zeros(3, 2, dtype=torch.int64).T, ValueError),
        (torch.zeros(4, 3), torch.zeros(0, 3, dtype=torch.int64), ValueError),
        (torch.zeros(4, 0), torch.zeros(2, 0, dtype=torch.int64), ValueError),
        (torch.zeros(4), torch.zeros(2, 4, dtype=torch.int64), ValueError),
        (torch.zeros(4, 3), torch.zeros(2, 3, dtype=torch.int32), TypeError),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), TypeError),
        (torch.zeros(4, 3, device="meta"), torch.zeros(2, 3, dtype=torch.int64), ValueError),
    ],
)
def test_the_native_call_refuses_what_would_be_unsafe(logits, counts, error):
    with pytest.raises(error, match=r"vote: expected .* got .*; "):
        counting.vote(logits, counts)


@needs_native
def test_no_rows_are_no_votes():
    counts = torch.zeros(2, 3, dtype=torch.int64)
    counting.vote(torch.zeros(0, 3), counts)
    assert counts.sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or library.cuda_why_not() is not None,
    reason="needs a CUDA device and drf_fast._CUDA",
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_the_cuda_kernel_equals_the_cpu(dtype):
    shapes = itertools.product([(1, 1), (1, 100_001), (3, 16), (64, 5)], [1, 2, 10, 32, 33, 1000])
    for (images, per_image), classes in shapes:
        logits = awkward(images * per_image, classes, dtype)
        with torch.cuda.stream(torch.cuda.Stream()):
            counts = torch.zeros(images, classes, dtype=torch.int64, device="cuda")
            cuda.vote(logits.cuda(), counts)
        torch.cuda.synchronize()
        single = torch.zeros(images, classes, dtype=torch.int64)
        reference.vote(logits, single)
        assert torch.equal(counts.cpu(), single), (images, per_image, classes)
