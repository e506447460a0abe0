"""Which implementation runs: the environment variable, the context manager, the fallback."""

from __future__ import annotations

import contextvars
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import drf_fast
from drf_fast.backends import dispatch, triton
from drf_fast.backends.environment import environment, runs_on
from drf_fast.backends.native import cpu, library
from drf_fast.backends.reference import operations as reference
from drf_fast.ops import schemas

CALLS = {
    "vote": lambda: drf_fast.vote(torch.zeros(4, 3), torch.zeros(2, 3, dtype=torch.int64)),
    "smooth_ce": lambda: drf_fast.smooth_ce(torch.zeros(4, 3), torch.zeros(2).long(), 2),
    "noisy_repeat": lambda: drf_fast.noisy_repeat(torch.zeros(2, 3), 0.5, 2),
}


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv("DRF_FAST_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_cache", {})


@pytest.fixture
def without_compiled_parts(monkeypatch):
    monkeypatch.setattr(cpu, "OPERATIONS", {})


@pytest.fixture
def marked(monkeypatch):
    """A compiled ``vote`` that only records that it ran, and nothing else compiled."""
    calls: list[str] = []
    monkeypatch.setattr(cpu, "OPERATIONS", {"vote": "native"})
    monkeypatch.setattr(cpu, "vote", lambda logits, counts: calls.append("vote"))
    return calls


def test_the_default_is_auto():
    assert dispatch.current() == "auto"


def test_the_reference_has_every_operation():
    assert set(reference.__all__) == set(schemas._SCHEMAS)
    with drf_fast.use_backend("reference"):
        for name in schemas._SCHEMAS:
            for device in ("cpu", "cuda", "mps"):
                assert dispatch.implementation(name, device) is getattr(reference, name) or (
                    device == "cuda"
                )


def test_every_compiled_operation_is_there_under_its_name():
    for name, kind in cpu.OPERATIONS.items():
        assert name in schemas._SCHEMAS and kind in ("native", "triton")
        assert callable(getattr(cpu, name))
        with drf_fast.use_backend(kind):
            assert dispatch.implementation(name, "cpu") is getattr(cpu, name)


def test_auto_takes_what_is_compiled_and_the_reference_for_the_rest(marked):
    CALLS["vote"]()
    assert marked == ["vote"]
    assert dispatch.implementation("smooth_ce", "cpu") is reference.smooth_ce
    assert dispatch.implementation("vote", "mps") is reference.vote


def test_auto_never_fails_because_a_compiled_part_is_missing(without_compiled_parts):
    for name, call in CALLS.items():
        call()
        assert dispatch.implementation(name, "cpu") is getattr(reference, name)


def test_native_names_a_rebuild_only_where_it_could_help(without_compiled_parts):
    with drf_fast.use_backend("native"):
        for name in reference.__all__:
            with pytest.raises(RuntimeError, match=f"{name} .*in this installation; .*what is bui"):
                dispatch.implementation(name, "cpu")
        for name, device in (("smooth_ce", "cuda"), ("max_pool_relu", "cuda"), ("vote", "mps")):
            with pytest.raises(RuntimeError) as caught:
                dispatch.implementation(name, device)
            assert str(caught.value) == (
                f"the backend 'native' was asked for, but no installation has a native {name} for "
                f"{device} tensors; use 'auto', the fastest that there is for them"
            )


def test_the_environment_variable_chooses(marked, monkeypatch):
    monkeypatch.setenv("DRF_FAST_BACKEND", "reference")
    assert dispatch.current() == "reference"
    CALLS["vote"]()
    assert marked == []


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("DRF_FAST_BACKEND", "cuda")
    with pytest.raises(ValueError, match=r"DRF_FAST_BACKEND.*one of auto, .*triton, got 'cuda'"):
        CALLS["smooth_ce"]()


def test_an_unknown_name_in_the_context_manager_is_an_error_and_changes_nothing():
    with (
        pytest.raises(ValueError, match=r"use\(\).*expected one of auto, .*got 'fast'"),
        drf_fast.use_backend("fast"),
    ):
        raise AssertionError("entered")
    assert dispatch.current() == "auto"


def test_the_context_manager_beats_the_environment_and_restores_what_was(marked, monkeypatch):
    monkeypatch.setenv("DRF_FAST_BACKEND", "reference")
    with drf_fast.use_backend("native"):
        assert dispatch.current() == "native"
        CALLS["vote"]()
        with drf_fast.use_backend("reference"):
            CALLS["vote"]()
        assert dispatch.current() == "native"
        CALLS["vote"]()
    assert dispatch.current() == "reference"
    CALLS["vote"]()
    assert marked == ["vote"] * 2


def test_the_context_manager_restores_after_an_exception():
    with pytest.raises(KeyError), drf_fast.use_backend("reference"):
        raise KeyError
    assert dispatch.current() == "auto"


def test_a_choice_belongs_to_its_thread():
    seen = []
    with drf_fast.use_backend("reference"):
        other = threading.Thread(target=lambda: seen.append(dispatch.current()))
        other.start()
        other.join()
    assert seen == ["auto"]


def test_two_threads_choose_apart():
    both = threading.Barrier(2)

    def choose(name):
        with drf_fast.use_backend(name):
            both.wait(30)
            seen = dispatch.current()
            both.wait(30)
        return seen, dispatch.current()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(choose, ["reference", "native"])) == [
            ("reference", "auto"),
            ("native", "auto"),
        ]


def in_an_empty_context(function):
    """``function`` wrapped to run as in autograd's own threads, which see no context variables."""
    return lambda *arguments: contextvars.Context().run(function, *arguments)


def test_backward_in_a_thread_of_autograd_follows_the_choice():
    seen = []

    def backward(grad, num_samples):
        seen.append(dispatch.current())
        return reference.noisy_repeat_backward(grad, num_samples)

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.repeat_interleave(2, 0)

        @staticmethod
        def backward(ctx, *grads):
            return in_an_empty_context(backward)(grads[0], 2)

    def run():
        x = torch.zeros(2, 3, requires_grad=True)
        Through.apply(x).sum().backward()

    with drf_fast.use_backend("reference"):
        run()
        with drf_fast.use_backend("native"):
            run()
        run()
        assert in_an_empty_context(dispatch.current)() == "auto"  # no backward, no message
    run()
    assert seen == ["reference", "native", "reference", "auto"]


@pytest.mark.parametrize("operation", list(CALLS))
def test_a_chosen_backend_without_the_operation_is_an_error(without_compiled_parts, operation):
    with (
        drf_fast.use_backend("native"),
        pytest.raises(RuntimeError, match=f"'native'.*{operation}.*cpu tensors.*'auto' or"),
    ):
        CALLS[operation]()


@pytest.mark.parametrize("operation", ["smooth_ce", "noisy_repeat"])
def test_a_backend_of_another_kind_is_not_taken_silently(monkeypatch, operation):
    monkeypatch.setattr(cpu, operation, lambda *arguments: pytest.fail("the native one ran"))
    with (
        drf_fast.use_backend("triton"),
        pytest.raises(RuntimeError, match=f"'triton' cannot run {operation}: "),
    ):
        CALLS[operation]()
    assert dispatch.current() == "auto"


def test_what_has_no_triton_form_runs_as_under_auto_where_triton_is_chosen(marked):
    with drf_fast.use_backend("triton"):
        CALLS["vote"]()
        assert dispatch.implementation("certified_radius", "cpu") is reference.certified_radius
    assert marked == ["vote"]


def test_torch_frees_none_of_the_names():
    names = [*dispatch.NAMES, None]
    before = [sys.getrefcount(name) for name in names]
    for _ in range(100):
        for name in dispatch.NAMES:
            with drf_fast.use_backend(name):
                pass
    after = [sys.getrefcount(name) for name in names]
    assert all(late >= early - 20 for early, late in zip(before, after, strict=True))


# ------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize(
    "device, chosen, kernels, cores, expected",
    [
        ("cpu", "auto", True, True, "C++ core (avx2)"),
        ("cpu", "native", True, True, "C++ core (avx2)"),
        ("cpu", "triton", True, True, "Triton 3.6.0 + C++ core (avx2)"),
        ("cpu", "auto", True, False, "reference"),
        ("cpu", "reference", True, True, "reference"),
        ("cuda", "auto", True, True, "Triton 3.6.0 + CUDA core"),
        ("cuda", "auto", True, False, "Triton 3.6.0"),
        ("cuda", "auto", False, True, "CUDA core"),
        ("cuda", "native", True, True, "CUDA core"),
        ("cuda", "auto", False, False, "reference"),
        ("cuda", "reference", True, True, "reference"),
        ("mps", "auto", False, True, "reference"),
    ],
)
def test_what_a_backend_means_is_named(monkeypatch, device, chosen, kernels, cores, expected):
    core = SimpleNamespace(build_info=lambda: {"isa": "avx2"})
    monkeypatch.setattr(triton, "why_not", lambda device: None if kernels else "none")
    monkeypatch.setattr(triton, "version", lambda: "3.6.0")
    monkeypatch.setattr(library, "available", lambda: cores)
    monkeypatch.setattr(library, "load", lambda: core)
    monkeypatch.setattr(library, "cuda_why_not", lambda: None if cores else "none")
    assert runs_on(device, chosen) == expected


@pytest.mark.parametrize("left_out", [{"compile": "no compiler"}, {}, None])
def test_the_environment_names_the_backend_and_what_it_runs_on(left_out):
    device = torch.device("cpu")
    found = environment(device, left_out)
    isa = library.load().build_info()["isa"] if library.available() else None
    assert found["backend"] == "auto"
    assert found["runs_on"] == (f"C++ core ({isa})" if isa else "reference")
    assert found.get("left_out") == (left_out or None)
    with drf_fast.use_backend("reference"):
        found = environment(device)
    assert (found["backend"], found["runs_on"]) == ("reference", "reference")


def test_the_version_of_triton_is_that_of_the_installed_one():
    assert triton.version() == pytest.importorskip("triton").__version__
