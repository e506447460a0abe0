"""The CUDA core on a GPU: the CPU's bits, no synchronisation, graphs that read changed numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from values import scalar

import drf_fast
from drf_fast.backends.native import counting, library
from drf_fast.backends.reference import bounds
from drf_fast.backends.reference import operations as reference

pytestmark = pytest.mark.gpu

GOLDEN = Path(__file__).parents[1] / "golden" / "clopper_pearson.csv"


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA core, without a fallback."""
    if library.cuda_why_not() is not None:
        pytest.skip(f"needs the CUDA core: {library.cuda_why_not()}")
    monkeypatch.delenv("DRF_FAST_DEBUG", raising=False)
    with drf_fast.use_backend("native"):
        yield


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """A host synchronisation by torch is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def random_counts(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    trials = (10 ** (15.9 * torch.rand(size, generator=generator, dtype=torch.float64))).long()
    share = torch.rand(size, generator=generator, dtype=torch.float64)
    share = torch.where(share < 0.1, 1.0, share)
    return (share * trials).long().clamp(max=trials), trials


def golden_counts(alpha: str) -> tuple[torch.Tensor, torch.Tensor]:
    with GOLDEN.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["alpha"] == alpha]
    return torch.tensor([int(row["k"]) for row in rows]), torch.tensor([int(r["n"]) for r in rows])


def on_every_device(successes: torch.Tensor, trials: torch.Tensor, alpha: float) -> None:
    """Bounds and radii on each GPU, on a stream of its own, have the bits of the CPU."""
    sigma = 0.37
    if library.available():
        lower = counting.clopper_pearson_lower(successes, trials, scalar(alpha))
        radius = counting.certified_radius(successes, trials, scalar(sigma), scalar(alpha))
    else:
        pytest.skip(f"needs the C++ core: {library.why_not()}")
    for index in range(torch.cuda.device_count()):
        counts = successes.cuda(index), trials.cuda(index)
        with torch.cuda.stream(torch.cuda.Stream(index)):
            found = drf_fast.clopper_pearson_lower(*counts, alpha)
            radii = drf_fast.certified_radius(*counts, sigma=sigma, alpha=scalar(alpha).cuda(index))
        torch.cuda.synchronize(index)
        assert found.device.index == index and torch.equal(found.cpu(), lower)
        assert torch.equal(radii.cpu(), radius)


@pytest.mark.parametrize("alpha", ["0.001", "0.05"])
def test_golden_bounds_have_the_bits_of_the_cpu(alpha: str) -> None:
    on_every_device(*golden_counts(alpha), float(alpha))


@pytest.mark.parametrize("alpha", [0.5, 0.001, 1e-6, 1e-300, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("size", [1, 63, 65, 200_000])
def test_random_bounds_have_the_bits_of_the_cpu(size: int, alpha: float) -> None:
    on_every_device(*random_counts(size), alpha)


def test_what_the_cpu_refuses_gives_0_or_its_error(monkeypatch) -> None:
    successes = torch.tensor([7, -1, 0, 3, 2**53 + 1, 9]).cuda()
    trials = torch.tensor([5, 5, 0, -4, 2**53 + 1, 9]).cuda()
    lower = drf_fast.clopper_pearson_lower(successes, trials, 0.1)
    radius = drf_fast.certified_radius(successes, trials, sigma=0.5, alpha=0.1)
    assert lower[:-1].count_nonzero() == 0 == radius[:-1].count_nonzero()
    assert lower[-1] > 0.7 and radius[-1] > 0.1
    for bad in (0.0, 1.0, math.nan, math.inf, -0.5):
        alpha = scalar(bad).cuda()
        assert drf_fast.clopper_pearson_lower(successes, trials, alpha).count_nonzero() == 0
    for bad in (0.0, -1.0, math.nan, math.inf):
        sigma = scalar(bad).cuda()
        radius = drf_fast.certified_radius(successes, trials, sigma=sigma, alpha=0.1)
        assert radius.count_nonzero() == 0
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="successes between 0 and trials, got 7 of 5 at index 0"):
        drf_fast.clopper_pearson_lower(successes, trials, 0.1)


def test_nothing_waits_for_the_device(no_waiting: None) -> None:
    counts = torch.zeros(8, 10, dtype=torch.int64, device="cuda")
    trials = torch.full((8,), 40, device="cuda")
    alpha = torch.full((), 0.001, dtype=torch.float64, device="cuda")
    for _ in range(2):
        drf_fast.vote(torch.randn(160, 10, device="cuda"), counts)
    successes = counts.amax(1)
    drf_fast.clopper_pearson_lower(successes, trials, alpha)
    drf_fast.certified_radius(successes, trials, sigma=alpha, alpha=alpha)


def test_a_graph_counts_again_and_follows_alpha_and_sigma() -> None:
    logits, counts = torch.randn(900, 10, device="cuda"), torch.zeros(3, 10).long().cuda()
    trials = torch.full((3,), 300, device="cuda")
    alpha, sigma = scalar(0.001).cuda(), scalar(0.5).cuda()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        drf_fast.vote(logits, counts)
        top = counts.amax(1)
        return (
            drf_fast.clopper_pearson_lower(top, trials, alpha),
            drf_fast.certified_radius(top, trials, sigma=sigma, alpha=alpha),
        )

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lower, radius = step()
        with pytest.raises(RuntimeError, match="graph is being captured"):
            drf_fast.clopper_pearson_lower(trials, trials, scalar(0.001))
    for level, noise in ((0.001, 0.5), (0.2, 0.5), (0.2, 0.25)):
        logits.normal_()
        logits[:, 4] += 3  # a class that wins most rows
        counts.zero_()
        alpha.fill_(level)
        sigma.fill_(noise)
        graph.replay()
        torch.cuda.synchronize()
        plain = torch.zeros(3, 10, dtype=torch.int64)
        reference.vote(logits.cpu(), plain)
        assert torch.equal(counts.cpu(), plain)
        top = plain.amax(1)
        truth = bounds.clopper_pearson_lower(top, trials.cpu(), scalar(level))
        assert torch.allclose(lower.cpu(), truth, rtol=0, atol=1e-12)
        truth = bounds.certified_radius(top, trials.cpu(), scalar(noise), scalar(level))
        assert torch.allclose(radius.cpu(), truth, rtol=1e-9, atol=1e-12) and (truth > 0).all()


@pytest.mark.parametrize("rows, classes", [(3, 2**30 + 8), (2**30 + 8, 3)])
def test_votes_beyond_2_to_the_31_logits(rows: int, classes: int) -> None:
    needed = 2 * rows * classes + 8 * classes + 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    logits = torch.zeros(rows, classes, dtype=torch.float16, device="cuda")
    logits[:, -1] = 1
    counts = torch.zeros(1, classes, dtype=torch.int64, device="cuda")
    drf_fast.vote(logits, counts)
    assert int(counts[0, -1]) == rows == int(counts.sum())
