"""What a GPU's values are checked for: nothing, or with DRF_FAST_DEBUG=1 all that a CPU's are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import GPU, OnGpu

import drf_fast
from drf_fast import functional
from drf_fast.balls import ball_arguments
from drf_fast.ops import checks, noise_checks
from drf_fast.runtime.values import may_read

Move = Callable[[torch.Tensor], torch.Tensor]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def ids(*values: int) -> Callable[[Move], Any]:
    def check(move: Move) -> Any:
        image_ids = move(torch.tensor(values))
        return noise_checks.noise_source(1, image_ids, len(values), image_ids.device)

    return check


def ball(lam: float) -> Callable[[Move], Any]:
    def check(move: Move) -> Any:
        soft = drf_fast.SoftBall(0.5)
        soft._lam = move(number(lam))
        return ball_arguments(soft, number(0.1))

    return check


def attack(*extremes: float) -> Callable[[Move], Any]:
    def check(move: Move) -> Any:
        x = torch.full((2, 1, 3, 3), 0.5)
        x[1, 0, 2, :2] = torch.tensor(extremes)
        options: dict[str, Any] = {"sigma": 0.5, "num_samples": 2, "steps": 1, "ball": None}
        two = move(torch.tensor([0, 1]))
        return drf_fast.attack(torch.nn.Flatten(), move(x), two, seed=1, image_ids=two, **options)

    return check


BAD: dict[str, tuple[Callable[[Move], Any], str]] = {
    "sigma 0": (
        lambda move: checks.scalar(move(number(0.0)), "sigma", positive=True),
        "sigma must be above 0, got 0",
    ),
    "sigma NaN": (
        lambda move: checks.scalar(move(number(math.nan)), "sigma", positive=True),
        "sigma must be finite, got nan",
    ),
    "step size": (
        lambda move: checks.scalar(move(number(-0.5)), "step_size", nonnegative=True),
        "step_size must be 0 or more, got -0.5",
    ),
    "lambda": (ball(-1.0), "lam of the ball must be 0 or more, got -1"),
    "lambda NaN": (ball(math.nan), "lam of the ball must be finite, got nan"),
    "alpha": (
        lambda move: checks.probability(move(number(1.0))),
        "alpha must be a probability, 0 < alpha < 1, got 1.0",
    ),
    "offset": (
        lambda move: noise_checks.sample_offset(move(torch.tensor(2**32 - 3)), 4),
        r"sample_offset must lie in 0\.\.4294967292, got 4294967293",
    ),
    "offset below 0": (
        lambda move: noise_checks.sample_offset(move(torch.tensor(-1)), 4),
        "sample_offset must lie in .*, got -1",
    ),
    "id of 33 bits": (ids(3, 2**32), r"image_ids must lie in .*from 3 to 4294967296"),
    "id below 0": (ids(3, -1), r"image_ids must lie in .*from -1 to 3"),
    "one id of many": (ids(*range(40), -1), r"image_ids must lie in .*from -1 to 39"),
    "images": (attack(-0.5, 2.0), r"images must lie inside clamp=\(0, 1\), got .* -0.5 to 2.0"),
    "images NaN": (attack(math.nan, 0.5), "images must lie inside clamp.* got values from nan"),
}


class PassedError(Exception):
    """The checks are passed: raised where the operation would run."""


@pytest.fixture(autouse=True)
def runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def passed(*arguments: Any, **options: Any) -> None:
        raise PassedError

    monkeypatch.setattr(functional, "noisy_repeat", passed)  # which attack calls first
    monkeypatch.delenv("DRF_FAST_DEBUG", raising=False)


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_debugging_gives_the_error_of_the_cpu(call, message, monkeypatch):
    with pytest.raises(ValueError, match=message) as expected:
        call(lambda tensor: tensor)
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    with pytest.raises(ValueError) as got:
        call(lambda tensor: tensor.as_subclass(OnGpu))
    assert str(got.value) == str(expected.value)


class Unreadable(OnGpu):
    """A GPU's tensor of which any look at a value is an error."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("item", "tolist", "__float__", "__int__", "__bool__", "aminmax"), name
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("call", [call for call, _ in BAD.values()], ids=BAD)
def test_a_gpu_is_not_waited_for_otherwise(call, monkeypatch):
    with contextlib.suppress(PassedError):
        call(lambda tensor: tensor.as_subclass(Unreadable))
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    with pytest.raises(AssertionError, match="float|int|tolist|aminmax"):
        call(lambda tensor: tensor.as_subclass(Unreadable))


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_values_are_read_where_there_are_any(value, monkeypatch):
    if value is not None:
        monkeypatch.setenv("DRF_FAST_DEBUG", value)
    assert may_read(torch.device("cpu")) and may_read(GPU) is (value == "1")
    assert not may_read(torch.device("meta"))


def test_good_values_pass_while_debugging(monkeypatch):
    monkeypatch.setenv("DRF_FAST_DEBUG", "1")
    to_gpu: Move = lambda tensor: tensor.as_subclass(OnGpu)  # noqa: E731
    with pytest.raises(PassedError):
        attack(0.0, 1.0)(to_gpu)
    assert float(checks.scalar(to_gpu(number(0.5)), "sigma", positive=True)) == 0.5
    assert ids(0, 2**32 - 1)(to_gpu)[1].tolist() == [0, 2**32 - 1]
    assert int(noise_checks.sample_offset(to_gpu(torch.tensor(2**32 - 4)), 4)) == 2**32 - 4
