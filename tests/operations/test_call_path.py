"""The short way to a backend, past torch's dispatcher, is taken only where nobody would see it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import drf_fast
from drf_fast.ops import checks, schemas

IDS = torch.tensor([3, 5])


def noisy(x: torch.Tensor) -> torch.Tensor:
    return drf_fast.noisy_repeat(x, 0.5, 2, seed=1, image_ids=IDS)


def smooth_ce(x: torch.Tensor) -> torch.Tensor:
    return drf_fast.smooth_ce(x, torch.tensor([1]), 2)


def voted(x: torch.Tensor) -> torch.Tensor:
    return drf_fast.vote(x, torch.zeros(1, 3, dtype=torch.int64))


CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noisy_repeat": noisy,
    "smooth_ce": smooth_ce,
    "vote": voted,
}
X = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.1, 0.9]])


class Seen(TorchDispatchMode):
    """Keeps the names of the operations that a dispatch mode is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """As ``Seen``, of a function mode."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def through_torch() -> Iterator[list[str]]:
    """The operations that went through torch's dispatcher."""
    names: list[str] = []
    library = torch.library.Library("drf_fast", "IMPL")
    for name in CALLS:
        own = schemas._IMPLEMENTATIONS[name]

        def noted(*arguments: Any, name: str = name, own: Any = own) -> Any:
            names.append(name)
            return own(*arguments)

        library.impl(name, noted, "CPU")
    yield names
    library._destroy()


@pytest.mark.parametrize("name", CALLS)
def test_plain_calls_take_the_short_way_and_mean_the_same(name, through_torch):
    short = CALLS[name](X)
    assert through_torch == []
    with Seen() as seen:
        long = CALLS[name](X)
    assert through_torch == [name] and f"drf_fast.{name}.default" in seen.names
    assert torch.equal(short, long) and short.requires_grad == long.requires_grad


@pytest.mark.parametrize("name", CALLS)
def test_whoever_follows_sees_the_operation(name, through_torch):
    with Functions() as functions:
        CALLS[name](X)
    assert through_torch == [name] and functions.names
    with torch.profiler.profile() as profile:
        CALLS[name](X)
    assert f"drf_fast::{name}" in {event.key for event in profile.key_averages()}


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_a_tracer_sees_the_operation():
    traced: Any = torch.jit.trace(lambda x: schemas.noisy_repeat_backward(x, 1), (X,))
    assert "drf_fast::noisy_repeat_backward" in str(traced.graph)


class Tagged(torch.Tensor):
    """A tensor of a subclass."""


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_a_subclass_go_through_torch(name, through_torch):
    CALLS[name](X.as_subclass(Tagged))
    assert through_torch == [name]


def test_of_tensors_without_values_shapes_alone_are_asked_for():
    x = torch.empty(6, 10, device="meta")
    assert drf_fast.noisy_repeat(x, 0.5, 3).shape == (18, 10)
    target = torch.empty(2, dtype=torch.int64, device="meta")
    assert drf_fast.smooth_ce(x, target, 3, reduction="none").shape == (2,)


def test_numbers_become_fake_under_a_fake_mode():
    assert checks.on_cpu(0.5, torch.float64) is checks.on_cpu(0.5, torch.float64)
    with FakeTensorMode():
        assert type(checks.on_cpu(0.5, torch.float64)) is not torch.Tensor
        out = drf_fast.noisy_repeat(torch.zeros(2, 3), 0.5, 2)
    assert type(out) is not torch.Tensor and out.shape == (4, 3)


def every_operation(x: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    """Those that read values to check them, with the gradient of a loss."""
    named: dict[str, Any] = {"sigma": torch.tensor(0.5), "seed": torch.tensor(1), "image_ids": ids}
    noisy = drf_fast.noisy_repeat(x, num_samples=3, sample_offset=torch.tensor(2), **named)
    levels = drf_fast.noisy_levels(x.to(torch.uint8), 0.3141, 3, seed=1, image_ids=ids)
    ball = drf_fast.HardBall(1.0)
    step = drf_fast.adversary_step(noisy, x, x, step_size=0.5, ball=ball, **named)
    logits = x.unsqueeze(0).detach().requires_grad_()
    loss = drf_fast.consistency_loss(logits, ids[:1] % 3, lam=0.5)
    radius = drf_fast.certified_radius(ids + 4, 10, sigma=0.5, alpha=torch.tensor(0.01))
    return [noisy, levels, *step, *torch.autograd.grad(loss, logits), radius]


def test_every_operation_runs_on_fake_tensors():
    with FakeTensorMode():
        fake = every_operation(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    real = every_operation(X, IDS)
    assert [(f.shape, f.dtype) for f in fake] == [(r.shape, r.dtype) for r in real]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_what_make_fx_records_computes_with_other_values(mode):
    graph = make_fx(every_operation, tracing_mode=mode)(X, IDS)
    x, ids = X.flip(1) + 1, IDS + 1
    for got, expected in zip(graph(x, ids), every_operation(x, ids), strict=True):
        assert torch.equal(got, expected)


def test_numbers_of_inference_mode_serve_outside_of_it():
    sigma = 0.6180339  # of this test alone, so that it is made here
    with torch.inference_mode():
        inside = drf_fast.noisy_repeat(X, sigma, 2, seed=1, image_ids=IDS)
    x = X.clone().requires_grad_()
    outside = drf_fast.noisy_repeat(x, sigma, 2, seed=1, image_ids=IDS)
    outside.sum().backward()
    assert torch.equal(inside, outside.detach()) and torch.equal(x.grad, torch.full_like(x, 2.0))  # type: ignore[arg-type]


def test_a_ball_changes_no_number_that_others_read():
    ball = drf_fast.SoftBall(1.0, lambda0=0.375)
    ball.update(torch.tensor([5.0]))
    assert float(ball.lam) != 0.375 and float(checks.on_cpu(0.375, torch.float64)) == 0.375
    assert float(drf_fast.SoftBall(1.0, lambda0=0.375).lam) == 0.375


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", ["noisy_repeat", "smooth_ce"])
def test_a_gradient_is_there_where_it_may_be_asked_for(name, enabled):
    x = X.clone().requires_grad_()
    with torch.set_grad_enabled(enabled):
        out = CALLS[name](x)
        assert out.requires_grad == enabled == (out.grad_fn is not None)
        assert not CALLS[name](X).requires_grad
    assert torch.equal(out.detach(), CALLS[name](X))


@pytest.mark.slow
def test_without_the_names_that_tell_every_call_goes_through_torch():
    """In a process of its own: torch without one of its private names."""
    code = (
        "import torch\n"
        "del torch._C._len_torch_function_stack\n"
        "from drf_fast.runtime.tracing import is_traced_or_profiled\n"
        "assert is_traced_or_profiled()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
