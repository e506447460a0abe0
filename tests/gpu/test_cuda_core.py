"""Calls from Python to the CUDA core without a GPU: arguments, errors, and an absent core.

Tensors that report a CUDA device, and a core that computes on the CPU, stand in for a GPU's.
``test_cuda_on_cpu.py`` runs the kernels, ``test_cuda_device.py`` everything on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from elsewhere import GPU, OnGpu, on_gpu

import drf_fast
from drf_fast.backends import dispatch, fallback
from drf_fast.backends.native import counting, cuda, library
from drf_fast.backends.reference import operations as reference

OPERATIONS = ("vote", "clopper_pearson_lower", "certified_radius")
STREAM = 0xABCD
needs_native = pytest.mark.skipif(
    not library.available(), reason=f"needs the C++ core: {library.why_not()}"
)


class Core:
    """Stands in for drf_fast._CUDA: computes on the CPU, and records device and stream."""

    def __init__(self, reason: str = "", archs: tuple[int, ...] = (75, 80, 90, 120)) -> None:
        self.reason, self.archs = reason, archs
        self.places: list[tuple[int, int]] = []

    def why_not(self) -> str:
        return self.reason

    def architectures(self) -> list[int]:
        return list(self.archs)

    def vote(self, *arguments: Any) -> None:
        self.places.append(arguments[-2:])
        library.load().vote(*arguments[:-2], 1)

    def clopper_pearson_lower(self, *arguments: int) -> None:
        self._bound("clopper_pearson_lower", *arguments)

    def certified_radius(self, *arguments: int) -> None:
        self._bound("certified_radius", *arguments)

    def _bound(self, name: str, successes: int, trials: int, *rest: int) -> None:
        *scalars, out, size, device, stream = rest
        self.places.append((device, stream))
        numbers = (ctypes.c_double.from_address(address).value for address in scalars)
        getattr(library.load(), name)(successes, trials, *numbers, out, size, 1)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """The stand-in for the core, and for the current stream."""
    made = Core()
    place = SimpleNamespace(device_index=GPU.index, cuda_stream=STREAM)
    monkeypatch.setattr(library, "load_cuda", lambda: made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: place)
    monkeypatch.delenv("DRF_FAST_DEBUG", raising=False)
    return made


# --------------------------------------------------------------------------------------- the calls


@needs_native
def test_a_vote_gets_its_tensors_device_and_stream(core: Core) -> None:
    logits = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))[:, ::2]
    counts, same = on_gpu([[0] * 10] * 3), torch.zeros(3, 10, dtype=torch.int64)
    cuda.vote(logits.as_subclass(OnGpu), counts)
    reference.vote(logits, same)
    assert torch.equal(counts.cpu(), same) and core.places == [(GPU.index, STREAM)]


@needs_native
def test_the_bounds_get_their_numbers_as_memory(core: Core) -> None:
    successes, trials = torch.tensor([[9, 99], [3, 0]]), torch.tensor([[9, 100], [5, 7]])
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (0.01, 0.5))
    moved = [tensor.as_subclass(OnGpu) for tensor in (successes, trials, sigma, alpha)]
    lower = cuda.clopper_pearson_lower(moved[0].T, moved[1].T, moved[3])
    radius = cuda.certified_radius(*moved)
    assert torch.equal(lower.cpu(), counting.clopper_pearson_lower(successes, trials, alpha).T)
    assert torch.equal(radius.cpu(), counting.certified_radius(successes, trials, sigma, alpha))
    assert lower.dtype == torch.float64 and core.places == [(GPU.index, STREAM)] * 2


def test_a_number_on_the_cpu_cannot_enter_a_graph(core: Core, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: GPU.index)
    alpha = torch.tensor(0.01, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="graph is being captured .* as 0-dim tensors on cuda:1"):
        cuda.clopper_pearson_lower(on_gpu([3]), on_gpu([5]), alpha)
    assert core.places == []


@needs_native
@pytest.mark.parametrize(
    "successes, trials, sigma, alpha, sentence",
    [
        (7, 5, 0.5, 0.1, "successes between 0 and trials, got 7 of 5 at index 0"),
        (0, 0, 0.5, 0.1, "trials between 1 and 2.53, got 0 at index 0"),
        (3, 5, 0.5, 1.5, "0 < alpha < 1, got 1.5"),
        (3, 5, -1.0, 0.1, "a finite sigma > 0, got -1"),
        (3, 5, math.nan, 0.1, "a finite sigma > 0, got nan"),
    ],
)
def test_debugging_gives_the_error_of_the_cpu(
    core: Core, monkeypatch, successes, trials, sigma, alpha, sentence
) -> None:
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    scalars = [on_gpu(value, torch.float64) for value in (sigma, alpha)]
    with pytest.raises(ValueError, match=f"certified_radius: expected {sentence}"):
        cuda.certified_radius(on_gpu([successes]), on_gpu([trials]), *scalars)
    assert core.places == []


HALF = torch.tensor(0.5)


@pytest.mark.parametrize(
    "successes, trials, alpha, error",
    [
        (torch.ones(2), torch.ones(2), HALF.double(), ValueError),
        (torch.ones(2).long(), torch.ones(3).long(), HALF.double(), ValueError),
        (torch.ones(2).long(), torch.ones(2).int(), HALF.double(), ValueError),
        (torch.ones(2).long(), torch.ones(2).long(), HALF, TypeError),
        (torch.ones(2).long(), torch.ones(2).long(), HALF.double().reshape(1), TypeError),
    ],
)
def test_what_would_be_unsafe_is_refused(core: Core, successes, trials, alpha, error) -> None:
    tensors = [successes, trials, alpha]
    for operation, move in (
        (counting.clopper_pearson_lower, lambda tensor: tensor),
        (cuda.clopper_pearson_lower, lambda tensor: tensor.as_subclass(OnGpu)),
    ):
        with pytest.raises(error, match=r"clopper_pearson_lower: expected .* got .*; convert them"):
            operation(*map(move, tensors))


@pytest.mark.parametrize("moved", [(0,), (1,), ()], ids=str)
def test_tensors_of_other_devices_are_refused(core: Core, moved: tuple[int, ...]) -> None:
    tensors = [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)]
    for place in moved:
        tensors[place] = tensors[place].as_subclass(OnGpu)
    with pytest.raises(ValueError, match="on one cuda device, got .* on cpu"):
        cuda.clopper_pearson_lower(tensors[0], tensors[1], HALF.double())
    with pytest.raises(ValueError, match="on one cuda device, got cpu and cpu"):
        cuda.vote(torch.zeros(4, 3), torch.zeros(2, 3, dtype=torch.int64))


# ------------------------------------------------------------------------------ where it cannot run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Describe a machine: its core (or why it is absent), its torch, its devices."""

    def describe(
        core: Core | None = None,
        absent: str | None = None,
        torch_cuda: str | None = "13.0",
        capabilities: tuple[tuple[int, int], ...] = ((9, 0),),
    ) -> None:
        load = library._load
        monkeypatch.setattr(
            library, "_load", lambda name: (core, absent) if name == "_CUDA" else load(name)
        )
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])

    # Both are cached for the process; here for one test.
    asked_once = functools.cache(library.cuda_why_not.__wrapped__)
    monkeypatch.setattr(library, "cuda_why_not", asked_once)
    monkeypatch.setattr(cuda, "_operations", functools.cache(cuda._operations.__wrapped__))
    monkeypatch.setattr(fallback, "_warned", set())
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.delenv("DRF_FAST_BACKEND", raising=False)
    return describe


TOO_OLD = "cudaGetDeviceCount: got 'CUDA driver version is insufficient'; update the NVIDIA driver"


@pytest.mark.parametrize(
    "description, reason",
    [
        ({"absent": "drf_fast._CUDA was not built: no nvcc"}, "was not built: no nvcc"),
        ({"core": Core(reason=TOO_OLD)}, "'CUDA driver version is insufficient'; update"),
        ({"core": Core(), "torch_cuda": None}, "needs a torch built for CUDA, got one without"),
        ({"core": Core(), "capabilities": ()}, "needs a CUDA device, torch sees none"),
        (
            {"core": Core(), "capabilities": ((9, 0), (7, 0))},
            "expected sm_75, sm_80, sm_90, sm_120 or newer, got sm_70 as device 1; reinstall .*"
            "DRF_FAST_CUDA_ARCHS=70 .* hide the device with CUDA_VISIBLE_DEVICES",
        ),
        ({"core": Core(archs=(80, 120)), "capabilities": ((9, 0),)}, "got sm_90 as device 0"),
    ],
    ids=["absent", "old driver", "torch without CUDA", "no device", "old device", "gap"],
)
def test_without_it_torch_operations_run_and_the_reason_is_said_once(
    machine, description: dict[str, Any], reason: str
) -> None:
    machine(**description)
    with pytest.warns(RuntimeWarning, match=f"run on the reference backend: .*{reason}") as said:
        for operation in (*OPERATIONS, *OPERATIONS):
            assert dispatch.implementation(operation, "cuda") is getattr(reference, operation)
    assert len(said) == 1
    with (
        drf_fast.use_backend("native"),
        pytest.raises(
            RuntimeError, match="certified_radius .* cuda tensors in this installation; .*doctor"
        ),
    ):
        dispatch.implementation("certified_radius", "cuda")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 1), (13, 0)])
def test_a_device_that_the_build_has_code_for_is_used(machine, capability) -> None:
    machine(core=Core(), capabilities=(capability,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for operation in OPERATIONS:
            chosen = dispatch.implementation(operation, "cuda")
            assert chosen is getattr(cuda, operation)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_built_core_explains_itself_where_there_is_no_driver() -> None:
    core, reason = library._load("_CUDA")
    if core is None:
        pytest.skip(f"needs drf_fast._CUDA: {reason}")
    sentence = r"expected success from CUDA, got '.*'; .* driver"
    assert core.architectures() == sorted(core.architectures()) != []
    with pytest.raises(RuntimeError, match=f"cudaGetDevice: {sentence}"):
        core.clopper_pearson_lower(0, 0, 0, 0, 1, 0, 0)
    assert re.match(f"cudaGetDeviceCount: {sentence}", core.why_not())
