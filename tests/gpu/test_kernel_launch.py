"""From an operation to the launch of its Triton kernel, and the fallback if it cannot run."""

from __future__ import annotations

import builtins
import math
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import drf_fast
from drf_fast.backends import dispatch, fallback
from drf_fast.backends import triton as kernels
from drf_fast.backends.reference import operations as reference
from drf_fast.kernels import launch as launching  # pyright: ignore[reportMissingImports]
from drf_fast.kernels import scalars  # pyright: ignore[reportMissingImports]
from drf_fast.kernels.launch import (  # pyright: ignore[reportMissingImports]
    KernelUnavailableError,
    launch,
    recording,
)

LOGITS, TARGET = torch.randn(2, 3, 4), torch.tensor([0, 3])
CALL = (LOGITS, TARGET, "mean", True)


class Kernel:
    """Stands in for a ``triton.jit`` function: records its launches, or fails at them."""

    def __init__(self, name: str = "some_kernel", error: Exception | None = None) -> None:
        self.fn = SimpleNamespace(__name__=name)
        self.error = error
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            self.launches.append((grid, arguments, options))
            if self.error is not None:
                raise self.error

        return run


class OutOfResources(Exception):  # noqa: N818 - triton's name for it
    pass


class PTXASError(Exception):
    pass


class InterpreterError(Exception):
    pass


# Errors that Triton 3 raises, and the words that our message must have.
UNAVAILABLE = {
    "driver too old": (
        RuntimeError(
            "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain."
        ),
        "update the driver",
    ),
    "driver too old for the binary": (
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        "update the driver",
    ),
    "no kernel image": (
        RuntimeError(
            "Triton Error [CUDA]: no kernel image is available for execution on the device"
        ),
        "install the triton",
    ),
    "GPU unknown to ptxas": (
        PTXASError("`ptxas` failed with error code 255\nValue 'sm_70' is not defined"),
        "install the triton",
    ),
    "no C compiler": (
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        "install gcc",
    ),
    "no Python headers": (
        subprocess.CalledProcessError(1, ["gcc", "main.c", "-O3", "-shared"]),
        "python3-dev",
    ),
    "a compiler that is not there": (
        FileNotFoundError(2, "No such file or directory", "/opt/cc"),
        "name a compiler in CC",
    ),
    "an unwritable cache": (
        PermissionError(13, "Permission denied", "/home/u/.triton"),
        "TRITON_CACHE_DIR",
    ),
    "no libcuda": (AssertionError("libcuda.so cannot found!\n"), "install the driver"),
    "no driver": (RuntimeError("0 active drivers ([]). There should only be one."), "libcuda.so.1"),
    "no ptxas": (RuntimeError("Cannot find ptxas"), "reinstall triton"),
    "too little shared memory": (
        OutOfResources("out of resource: shared memory, Required: 131072"),
        "too little shared memory",
    ),
}
FAULTS = {
    "an illegal address": RuntimeError(
        "Triton Error [CUDA]: an illegal memory access was encountered"
    ),
    "a fault in the interpreter": InterpreterError("FileNotFoundError(2, 'No such file')"),
    "a wrong argument": TypeError("dynamic_func() missing 1 required positional argument"),
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("DRF_FAST_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.setattr(fallback, "_warned", set())
    kernels.load_or_fall_back.cache_clear()
    yield
    kernels.load_or_fall_back.cache_clear()


def install(monkeypatch, kernel: Kernel, *operations: str) -> None:
    """Replace the kernels of the operations by ``kernel``; they return their inputs."""

    def operation(*arguments: Any) -> Any:
        launch(kernel, 1, *(value for value in arguments if isinstance(value, torch.Tensor)))
        return arguments

    monkeypatch.setattr(kernels, "why_not", lambda device_type: None)
    for name in {kernels.MODULES[name] for name in operations}:
        module = SimpleNamespace(**dict.fromkeys(operations, operation))
        monkeypatch.setitem(sys.modules, f"drf_fast.kernels.{name}", module)


# ---------------------------------------------------------------------------------------- launching


def test_a_launch_passes_arguments_constants_and_options_on():
    kernel, x = Kernel(), torch.zeros(3)
    launch(kernel, 7, x, 5, num_warps=8, BLOCK=16)
    (grid, arguments, options), *more = kernel.launches
    assert not more and grid == (7,) and arguments[0] is x and arguments[1] == 5
    assert options == {"num_warps": 8, "enable_fp_fusion": False, "BLOCK": 16}
    launch(kernel, 7, x, registers=64)
    assert kernel.launches[1][2] == {"num_warps": 4, "enable_fp_fusion": False, "maxnreg": 64}


def test_recording_runs_nothing_and_needs_no_memory():
    kernel = Kernel()
    x = torch.empty(2**40, device="meta")
    with recording() as launches:
        launch(kernel, 2**31 - 1, x, num_warps=2, BLOCK=16)
        with recording() as inner:
            launch(kernel, 3, x)
    assert not kernel.launches and len(launches) == len(inner) == 1
    assert launches[0].programs == 2**31 - 1 and launches[0].constants == {"BLOCK": 16}
    assert launches[0].arguments == (x,) and launches[0].num_warps == 2
    launch(kernel, 3, torch.zeros(1))
    assert len(kernel.launches) == 1


def test_more_programs_than_a_grid_has_are_refused():
    with pytest.raises(ValueError, match=r"some_kernel.*at most 2147483647.*got 2147483648"):
        launch(Kernel(), 2**31, torch.zeros(1))


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_what_makes_a_kernel_impossible_here_is_explained_in_a_sentence(case):
    error, words = UNAVAILABLE[case]
    with pytest.raises(KernelUnavailableError) as caught:
        launch(Kernel(error=error), 1, torch.zeros(1))
    message = str(caught.value)
    assert message.startswith("some_kernel: this Triton kernel cannot run here (")
    assert type(error).__name__ in message and words in message and "\n" not in message
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_kernel_is_not_explained_away(case):
    with pytest.raises(type(FAULTS[case])) as caught:
        launch(Kernel(error=FAULTS[case]), 1, torch.zeros(1))
    assert caught.value is FAULTS[case]


def test_out_of_memory_stays_what_callers_catch_it_as():
    error = RuntimeError("Triton Error [CUDA]: out of memory")
    with pytest.raises(torch.OutOfMemoryError, match="some_kernel.*use a smaller batch"):
        launch(Kernel(error=error), 1, torch.zeros(1))
    raised = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        launch(Kernel(error=raised), 1, torch.zeros(1))
    assert caught.value is raised


def test_the_words_of_the_installed_triton_are_known(monkeypatch):
    build = pytest.importorskip("triton.runtime.build")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    find = getattr(build, "_find_compiler", None)
    with pytest.raises(RuntimeError) as missing:
        if find is None:  # Triton 3.2 looks for a compiler when it builds
            build._build("x", "x.c", ".", [], [], [])
        getattr(find, "__wrapped__", find)("c")  # pyright: ignore[reportOptionalCall]
    explained = launching._explained("smooth_ce", missing.value)
    assert isinstance(explained, KernelUnavailableError) and "install gcc" in str(explained)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_compiled_kernel_on_a_machine_without_a_gpu_is_explained():
    triton = pytest.importorskip("triton")
    with pytest.raises(KernelUnavailableError, match=r"libcuda\.so\.1; install the driver"):
        launch(triton.language.cdiv, 1, torch.zeros(1))


# ----------------------------------------------------------------------------------------- routing


def test_auto_runs_the_kernel_on_cuda_tensors_and_never_on_cpu_tensors(monkeypatch):
    kernel = Kernel()
    install(monkeypatch, kernel, *kernels.MODULES)
    for name in kernels.MODULES:
        assert dispatch.implementation(name, "cuda")(LOGITS) == (LOGITS,)
        assert "triton" in dispatch.implementation(name, "cuda").__module__
        assert "triton" not in dispatch.implementation(name, "cpu").__module__
    assert len(kernel.launches) == len(kernels.MODULES)


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_auto_falls_back_with_one_warning_that_explains(monkeypatch, case):
    error, words = UNAVAILABLE[case]
    kernel = Kernel(error=error)
    install(monkeypatch, kernel, "smooth_ce", "noisy_repeat_backward")
    with pytest.warns(RuntimeWarning, match="^CUDA tensors run on the reference") as caught:
        for _ in range(3):
            loss, grad = dispatch.implementation("smooth_ce", "cuda")(*CALL)
        total = dispatch.implementation("noisy_repeat_backward", "cuda")(torch.ones(6, 2), 3)
        with drf_fast.use_backend("auto"):  # clears the dispatch cache, not the record of failures
            dispatch.implementation("smooth_ce", "cuda")(*CALL)
    assert len(caught) == 1 and words in str(caught[0].message)
    assert len(kernel.launches) == 2, "each operation tries its kernel once"
    expected = reference.smooth_ce(*CALL)
    assert torch.equal(loss, expected[0]) and torch.equal(grad, expected[1])
    assert torch.equal(total, torch.full((2, 2), 3.0))


def test_a_kernel_that_fails_for_some_arguments_goes_on_with_others(monkeypatch):
    class Small(Kernel):
        def __getitem__(self, grid: Any) -> Any:
            def run(x: torch.Tensor, **options: Any) -> None:
                self.launches.append((len(x),))
                if len(x) > 4:
                    raise UNAVAILABLE["too little shared memory"][0]

            return run

    kernel = Small()
    install(monkeypatch, kernel, "noisy_repeat_backward")
    backward = dispatch.implementation("noisy_repeat_backward", "cuda")
    with pytest.warns(RuntimeWarning, match="^CUDA tensors run on the reference"):
        found = [backward(torch.ones(rows, 2), 2) for rows in (4, 8, 4, 8)]
    # The stand-in of the kernel returns its arguments.
    assert [isinstance(result, torch.Tensor) for result in found] == [False, True, False, True]
    assert kernel.launches == [(4,), (8,), (4,)]


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_triton_by_name_raises_instead(monkeypatch, case):
    error, words = UNAVAILABLE[case]
    install(monkeypatch, Kernel(error=error), "smooth_ce")
    with drf_fast.use_backend("triton"), pytest.raises(RuntimeError, match=words):
        drf_fast.smooth_ce(LOGITS, TARGET)


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("chosen", ["auto", "triton"])
def test_no_backend_hides_a_fault(monkeypatch, case, chosen):
    install(monkeypatch, Kernel(error=FAULTS[case]), "smooth_ce")
    with drf_fast.use_backend(chosen), pytest.raises(type(FAULTS[case])):
        dispatch.implementation("smooth_ce", "cuda")(*CALL)


@pytest.mark.parametrize("chosen", ["auto", "triton"])
def test_no_backend_answers_out_of_memory_with_what_needs_more(monkeypatch, chosen):
    error = RuntimeError("Triton Error [CUDA]: out of memory")
    install(monkeypatch, Kernel(error=error), "smooth_ce")
    with drf_fast.use_backend(chosen), pytest.raises(torch.OutOfMemoryError):
        dispatch.implementation("smooth_ce", "cuda")(*CALL)


def test_votes_and_bounds_run_without_a_kernel_where_triton_is_asked_for():
    counts = torch.zeros(1, 3, dtype=torch.int64)
    with drf_fast.use_backend("triton"):
        drf_fast.vote(torch.eye(3), counts)
        bound = drf_fast.clopper_pearson_lower(torch.tensor([99]), torch.tensor([100]), 0.001)
        radius = drf_fast.certified_radius(
            torch.tensor([99]), torch.tensor([100]), sigma=0.5, alpha=0.001
        )
    assert counts.tolist() == [[1, 1, 1]] and 0.9 < float(bound) < 0.99 and float(radius) > 0


# ------------------------------------------------------------------------------ triton itself


def without_triton(monkeypatch):
    importing = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    return r"triton 3\.2 or newer, which cannot be imported \(No module named 'triton'\)"


def with_old_triton(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "2.3.1")
    return r"triton 3\.2 or newer, got 2\.3\.1; install a newer torch"


@pytest.mark.parametrize("remove", [without_triton, with_old_triton])
def test_without_a_usable_triton(monkeypatch, remove):
    words = remove(monkeypatch)
    with pytest.warns(RuntimeWarning, match=words) as caught:
        for name in ("smooth_ce", "macer_loss", "smooth_ce"):
            assert dispatch.implementation(name, "cuda") is getattr(reference, name)
    assert len(caught) == 1
    for device_type in ("cuda", "cpu"):
        with drf_fast.use_backend("triton"), pytest.raises(RuntimeError, match=words):
            dispatch.implementation("smooth_ce", device_type)


def test_cpu_tensors_without_the_interpreter():
    pytest.importorskip("triton")
    with (
        drf_fast.use_backend("triton"),
        pytest.raises(RuntimeError, match="got cpu tensors; set TRITON_INTERPRET=1 before Python"),
    ):
        drf_fast.smooth_ce(LOGITS, TARGET)


@pytest.mark.slow
def test_neither_import_nor_cpu_operations_import_triton():
    code = (
        "import sys, torch, drf_fast\n"
        "drf_fast.smooth_ce(torch.zeros(2, 3, 4), torch.zeros(2).long())\n"
        "drf_fast.noisy_repeat(torch.zeros(2, 3), 0.5, 2)\n"
        "import drf_fast.kernels.launch, drf_fast.kernels.scalars\n"
        "assert 'triton' not in sys.modules, 'triton was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ----------------------------------------------------------------------------------------- scalars


def test_scalars_on_the_device_are_passed_through():
    numbers = [torch.tensor(0.5, dtype=torch.float64), torch.tensor(7)]
    moved = scalars.on_device(torch.device("cpu"), *numbers)
    assert all(a is b for a, b in zip(moved, numbers, strict=True))


def test_scalars_elsewhere_are_made_there_with_their_types():
    there = torch.tensor(3, device="meta")
    numbers = [torch.tensor(0.5, dtype=torch.float64), there, torch.tensor(-(2**63))]
    moved = scalars.on_device(torch.device("meta"), *numbers)
    assert moved[1] is there
    assert [value.dtype for value in moved] == [torch.float64, torch.int64, torch.int64]
    assert all(value.shape == () and value.is_meta for value in moved)


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, math.inf, math.nan, -(2**63), 2**63 - 1, 0])
def test_a_number_is_made_with_its_bits_once_for_each_stream(value):
    number = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    bits = number.view(torch.int64).item()
    made = [scalars._kept(torch.device("cpu"), stream, number.dtype, bits) for stream in (1, 1, 2)]
    assert all(each.dtype == number.dtype for each in made)
    assert all(each.view(torch.int64).item() == bits for each in made)
    assert made[0] is made[1] and made[0] is not made[2]


def test_a_number_on_the_cpu_is_refused_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(RuntimeError, match="CUDA graph.*0-dim tensors on cuda:0.*in place"):
        scalars.on_device(torch.device("cuda", 0), torch.tensor(0.5, dtype=torch.float64))


def test_no_warning_where_all_is_well(monkeypatch):
    install(monkeypatch, Kernel(), "smooth_ce")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.implementation("smooth_ce", "cuda")(*CALL)
