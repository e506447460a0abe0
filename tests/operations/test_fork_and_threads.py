"""The C++ core beside itself: in forked children, and called by several Python threads at once."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from values import scalar

import drf_fast
from drf_fast.backends.native import cpu, library
from drf_fast.errors import InputError
from drf_fast.ops import schemas

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = [
    pytest.mark.skipif(
        not library.available(), reason=library.why_not() or "the C++ core is available"
    ),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

# Large enough that each operation is worth several threads.
IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LOGITS = torch.randn(64, 4, 200, generator=torch.Generator().manual_seed(2))
VOTES = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(3))
TARGET, IDS = torch.arange(64), torch.arange(8)
TRIALS = torch.full((300,), 1000)
KEY, OFFSET = torch.tensor(-9), torch.tensor(5)


SIGMA, LAM, ALPHA = scalar(0.5), scalar(2.0), scalar(0.001)
ATTACK = (SIGMA, SIGMA, LAM, SIGMA, KEY, IDS, "hard", "batch", [0.0, 1.0])


def vote() -> torch.Tensor:
    counts = torch.zeros(4, 10, dtype=torch.int64)
    schemas.vote(VOTES, counts)
    return counts


# Made here: torch's own threads, which a forked child has lost, must not be asked for there.
CONVOLVED = torch.randn(64, 16, 24, 24).contiguous(memory_format=torch.channels_last)
POOLED, PLACES = schemas.max_pool_relu(CONVOLVED, True)
KERNEL = torch.randn(16, 1, 3, 3)
LEVELS = torch.randint(0, 256, IMAGES.shape, dtype=torch.uint8)
CALLS: dict[str, Callable[[], Any]] = {
    "max_pool_relu": lambda: schemas.max_pool_relu(CONVOLVED, True),
    "max_pool_relu_backward": lambda: schemas.max_pool_relu_backward(POOLED, PLACES),
    "pooled_image_gradient": lambda: schemas.pooled_image_gradient(POOLED, PLACES, KERNEL),
    "noisy_levels": lambda: drf_fast.noisy_levels(LEVELS, 0.5, 8, seed=1, image_ids=IDS),
    "noisy_repeat": lambda: schemas.noisy_repeat(IMAGES, SIGMA, KEY, IDS, OFFSET, 8, "estimation"),
    "noisy_repeat_backward": lambda: schemas.noisy_repeat_backward(ROWS, 8),
    "smooth_ce": lambda: schemas.smooth_ce(LOGITS, TARGET, "mean", True),
    "consistency_loss": lambda: schemas.consistency_loss(LOGITS, TARGET, LAM, SIGMA, "mean", True),
    "macer_loss": lambda: schemas.macer_loss(LOGITS, TARGET, SIGMA, LAM, LAM, LAM, True),
    "adversary_step": lambda: schemas.adversary_step(ROWS, IMAGES, IMAGES, *ATTACK),
    "vote": vote,
    "clopper_pearson_lower": lambda: schemas.clopper_pearson_lower(
        torch.arange(300), TRIALS, ALPHA
    ),
    "certified_radius": lambda: schemas.certified_radius(
        torch.arange(701, 1001), TRIALS, SIGMA, ALPHA
    ),
}


def run(name: str) -> bytes:
    """The bytes of all that the operation returns."""
    result = CALLS[name]()
    tensors = [result] if isinstance(result, torch.Tensor) else result
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Of each operation its bytes on one thread, after it ran here on four."""
    shares: list[int] = []

    def recorded(work: int, per_thread: int) -> int:
        shares.append(library.threads_for(work, per_thread))
        return shares[-1]

    before = torch.get_num_threads()
    with drf_fast.use_backend("native"):
        torch.set_num_threads(1)
        serial = {name: run(name) for name in CALLS}
        torch.set_num_threads(4)
        with monkeypatch.context() as patch:
            for module in ("adversary", "counting", "losses", "noise", "pooling"):
                patch.setattr(f"drf_fast.backends.native.{module}.threads_for", recorded)
            assert {name: run(name) for name in CALLS} == serial
        assert len(shares) == len(CALLS) and min(shares) > 1
        yield serial
    torch.set_num_threads(before)


def test_every_native_operation_is_called_here() -> None:
    assert set(CALLS) == set(cpu.OPERATIONS)


# ------------------------------------------------------------------------------------------- fork


def in_fork(work: Callable[[], None]) -> str:
    """What went wrong in a forked child: "" where the work ended well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            message = "done"
        except BaseException as error:
            message = repr(error)
        os.write(writer, message.encode()[:4000])
        os._exit(0)
    os.close(writer)
    try:
        deadline = time.monotonic() + 60
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "it hung"
            time.sleep(0.005)
        message = os.read(reader, 4096).decode()
        return "" if message == "done" else message or "it crashed"
    finally:
        os.close(reader)


def compare(expected: dict[str, bytes]) -> None:
    for name in CALLS:
        if run(name) != expected[name]:
            raise AssertionError(f"{name} gave another result")


@needs_fork
def test_a_forked_child_and_its_own_child_run_every_operation(expected) -> None:
    def work() -> None:
        compare(expected)
        assert in_fork(lambda: compare(expected)) == ""

    assert in_fork(work) == ""
    compare(expected)  # and so does the parent afterwards


@needs_fork
def test_a_child_forked_before_the_first_operation():
    # The parent has only imported drf_fast, and its OpenMP threads are torch's.
    program = """
import os, signal, torch, drf_fast
torch.rand(4000, 4000).sum()
child = os.fork()
if child == 0:
    signal.alarm(20)
    drf_fast.noisy_repeat(torch.rand(64, 3, 32, 32), 0.5, 4)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "0\n", result


@pytest.mark.slow
@needs_fork
def test_a_child_forked_while_other_threads_are_inside_operations(expected) -> None:
    stop = threading.Event()

    def keep_calling(name: str) -> None:
        while not stop.is_set():
            run(name)

    workers = [threading.Thread(target=keep_calling, args=(name,)) for name in CALLS]
    for worker in workers:
        worker.start()
    try:
        for _ in range(5):
            assert in_fork(lambda: compare(expected)) == ""
    finally:
        stop.set()
        for worker in workers:
            worker.join()


@pytest.mark.slow
@needs_fork
def test_the_workers_of_a_forking_pool(expected) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(run, list(CALLS) * 3)
        assert results.get(60) == list(expected.values()) * 3


class NoisyImages(Dataset):
    """Images with noise added by the workers that load them."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> torch.Tensor:
        ids = torch.tensor([index])
        return drf_fast.noisy_repeat(IMAGES[index : index + 1], 0.5, 8, seed=1, image_ids=ids)


@pytest.mark.slow
@needs_fork
def test_the_workers_of_a_data_loader(expected) -> None:
    loader = DataLoader(
        NoisyImages(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    rows = drf_fast.noisy_repeat(IMAGES, 0.5, 8, seed=1, image_ids=IDS)
    assert torch.equal(torch.cat(list(loader)), rows)


# ---------------------------------------------------------------------------------------- threads


@pytest.mark.slow
def test_threads_that_call_everything_at_once_get_what_one_alone_gets(expected) -> None:
    together = threading.Barrier(4)

    def work(seed: int) -> list[str]:
        shuffled = random.Random(seed)
        together.wait(60)
        wrong = []
        for name in shuffled.choices(list(CALLS), k=60):
            torch.set_num_threads(shuffled.randint(1, 4))
            if run(name) != expected[name]:
                wrong.append(name)
        return wrong

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[]] * 4


def test_threads_that_differentiate_at_once(expected) -> None:
    names = ("smooth_ce", "consistency_loss", "macer_loss", "noisy_repeat")
    options = {"consistency_loss": {"lam": 2.0}, "macer_loss": {"sigma": 0.5, "lam": 2.0}}

    def gradient(name: str) -> bytes:
        x = (IMAGES if name == "noisy_repeat" else LOGITS).clone().requires_grad_()
        if name == "noisy_repeat":
            drf_fast.noisy_repeat(x, 0.5, 8, seed=1, image_ids=IDS).backward(ROWS)
        else:
            getattr(drf_fast, name)(x, TARGET, **options.get(name, {})).backward()
        assert x.grad is not None
        return x.grad.numpy().tobytes()

    alone = {name: gradient(name) for name in names}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, got in zip(names * 20, pool.map(gradient, names * 20), strict=True):
            assert got == alone[name], name


class Repeated:
    """The core, each of whose calls is made again until another thread has run beside it."""

    def __init__(self, core: ModuleType) -> None:
        self.core, self.ran = core, False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return functools.partial(self.call, getattr(self.core, name))

    def call(self, function: Callable[..., None], *arguments: object, **named: object) -> None:
        awake = threading.Event()

        def other() -> None:
            awake.wait()
            self.ran = True

        thread = threading.Thread(target=other)
        thread.start()
        before = sys.getswitchinterval()
        sys.setswitchinterval(100)  # from here on this thread keeps the lock, unless it lets go
        try:
            self.ran = False
            awake.set()
            deadline = time.monotonic() + 5
            while not self.ran and time.monotonic() < deadline:
                function(*arguments, **named)
        finally:
            sys.setswitchinterval(before)
        assert self.ran
        thread.join()


def test_every_operation_lets_other_threads_run_meanwhile(expected, monkeypatch) -> None:
    core = Repeated(library.load())
    for module in ("adversary", "counting", "losses", "noise", "pooling"):
        monkeypatch.setattr(f"drf_fast.backends.native.{module}.load", lambda: core)
    for name in CALLS:
        core.ran = False
        CALLS[name]()
        assert core.ran, name


# -------------------------------------------------------------------------------- the environment


def test_the_environment_is_read_when_the_core_is_loaded_and_not_later(monkeypatch) -> None:
    # C's getenv in an operation beside a change of os.environ in another thread ends the process.
    before = library.load().build_info()["isa"]
    assert before != "baseline" or os.environ.get("DRF_FAST_ISA") == "baseline"
    monkeypatch.setenv("DRF_FAST_ISA", "baseline")
    assert library.load().build_info()["isa"] == before


def test_an_unknown_instruction_set_is_refused(monkeypatch) -> None:
    load_again: Any = library._load.__wrapped__
    try:
        for word, used in (("baseline", "baseline"), ("avx", ""), ("AVX2", "")):
            monkeypatch.setenv("DRF_FAST_ISA", word)
            if used:
                assert load_again("_C")[0].build_info()["isa"] == used
                continue
            sentence = f"expected one of baseline, avx2, avx512, got '{word}'; correct it or unset"
            with pytest.raises(InputError, match=sentence):
                load_again("_C")
    finally:
        monkeypatch.undo()
        load_again("_C")
