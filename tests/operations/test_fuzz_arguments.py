"""Any nonsense as any argument of the public functions: one clear sentence, nothing else.

Each function is called with sound arguments but one. What comes in its place is refused with a
TypeError or a ValueError of one sentence that names the argument, or it is one of the few values
that make sense there: then it counts as the plain value that it stands for. Nothing is ignored,
nothing fails deep inside, nothing ends the interpreter.
"""

from __future__ import annotations

import decimal
import fractions
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import hypothesis.extra.numpy as numpy_st
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from drawn import fuzz

import drf_fast

X, GRAD = torch.full((2, 1, 3, 3), 0.5), torch.ones(4, 1, 3, 3)
LOGITS, TARGET, IDS = torch.arange(24.0).reshape(6, 4), torch.tensor([0, 3]), torch.tensor([5, 9])


def counts() -> torch.Tensor:
    return torch.zeros(2, 4, dtype=torch.int64)


NOISE: dict[str, Any] = {"sigma": 0.5, "seed": 3, "image_ids": IDS}
LOSS: dict[str, Any] = {"logits": LOGITS, "target": TARGET, "num_samples": 3, "sample_dim": 1}
THREE = {**LOSS, "logits": LOGITS.reshape(2, 3, 4)}
STEP = {"grad": GRAD, "x": X, "x_adv": X, "step_size": 0.1, "ball": drf_fast.HardBall(1.0)}
SOFT = {"epsilon": 1.0, "lambda0": 1.0, "lambda_lr": 0.02, "kappa": 9, "form": "prox"}

# Name, function, sound arguments.
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "noisy_repeat": (
        drf_fast.noisy_repeat,
        {"x": X, "num_samples": 2, **NOISE, "sample_offset": 0, "stream": "train"},
    ),
    "smooth_ce": (drf_fast.smooth_ce, {**LOSS, "reduction": "mean"}),
    "smooth_ce, 3-D": (drf_fast.smooth_ce, {**THREE, "reduction": "none"}),
    "consistency_loss": (
        drf_fast.consistency_loss,
        {**LOSS, "lam": 1.0, "eta": 0.5, "reduction": "sum"},
    ),
    "macer_loss": (
        drf_fast.macer_loss,
        {**LOSS, "sigma": 1.0, "lam": 1.0, "gamma": 8.0, "beta": 16.0},
    ),
    "adversary_step": (
        drf_fast.adversary_step,
        {**STEP, **NOISE, "grad_norm": "image", "clamp": (0, 1)},
    ),
    "noisy_levels": (
        drf_fast.noisy_levels,
        {
            "u": (X * 255).to(torch.uint8),
            **{key: value for key, value in NOISE.items() if key != "sigma"},
            "sigma": 0.5,
            "num_samples": 2,
            "sample_offset": 1,
            "stream": "train",
            "dtype": torch.float32,
        },
    ),
    "vote": (drf_fast.vote, {"logits": LOGITS, "counts": None}),
    "clopper_pearson_lower": (
        drf_fast.clopper_pearson_lower,
        {"successes": 5, "trials": 10, "alpha": 0.01},
    ),
    "certified_radius": (
        drf_fast.certified_radius,
        {"successes": 9, "trials": 10, "sigma": 0.5, "alpha": 0.1},
    ),
    "noise_key": (drf_fast.noise_key, {"seed": 1, "step": 2}),
    "HardBall": (drf_fast.HardBall, {"epsilon": 1.0}),
    "SoftBall": (drf_fast.SoftBall, {**SOFT, "lambda_every": 1}),
    "SoftBall, udr": (drf_fast.SoftBall, {**SOFT, "form": "udr", "tau": 0.5}),
}
ARGUMENTS = [(name, argument) for name, (_, sound) in FUNCTIONS.items() for argument in sound]
TENSORS = ("x", "u", "grad", "x_adv", "logits", "target", "counts", "image_ids")
WHOLE = ("num_samples", "sample_offset", "seed", "step", "kappa", "successes", "trials")
CHOICES = ("stream", "reduction", "grad_norm", "form")


def call(name: str, changed: dict[str, Any]) -> Any:
    function, sound = FUNCTIONS[name]
    arguments = {**sound, **changed}
    if arguments.get("counts", 0) is None and "counts" not in changed:
        arguments["counts"] = counts()
    return function(**arguments)


@pytest.fixture(autouse=True)
def no_warnings_of_torch() -> Iterator[None]:
    """Some of the tensors are of kinds that torch announces as betas at each use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ------------------------------------------------------------------------------------- the values


class Shapeless:
    """Has what a ball has by name, and nothing that it means."""

    form, epsilon, lam = "cube", 1.0, None


def odd_tensors() -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces some kinds as betas
        return _odd_tensors()


def _odd_tensors() -> list[torch.Tensor]:
    dense = torch.rand(6, 4)
    rows = [torch.rand(2, 3), torch.rand(3, 3)]
    return [
        dense.to_sparse(),
        dense.to_sparse_csr(),
        X.to_sparse(),
        IDS.to_sparse(),
        torch.tensor(1.0).to_sparse(),
        torch.tensor(3).to_sparse(),
        torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8),
        torch.nested.nested_tensor(rows),
        torch.nested.nested_tensor(rows, layout=torch.jagged),
        *([dense.to_mkldnn()] if torch.backends.mkldnn.is_available() else []),
        dense + 1j,
        dense.to(torch.float8_e4m3fn),
        torch.tensor(1j),
        torch.tensor(True),
        torch.tensor(1.0, requires_grad=True),
        torch.tensor(1.0, device="meta"),
        torch.tensor(1, device="meta"),
        torch.empty(7, 7, device="meta"),
    ]


ODD = [
    *odd_tensors(),
    *[object(), int, len, ..., NotImplemented, torch.float32, torch.device("cpu"), Shapeless()],
    *[
        np.bool_(True),
        np.str_("mean"),
        np.datetime64("2020-01-01"),
        np.array(3),
        np.array(["mean"]),
    ],
    *[decimal.Decimal(1), 1j, b"1", "01", ("0", "1"), {0: 1, 1: 2}, {0, 1}, range(2)],
    *[10**400, 2**63, 2**64, -(2**63) - 1, 2**32, (0, 10**400), (1, 0), (math.nan, 1)],
    *["Mean", "", "x" * 10**5, "a\nb", [[1.0, 2.0]], torch.Size([2]), drf_fast.HardBall],
]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), max_size=5)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8]
PLAIN_TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    SHAPES,
    st.sampled_from([*DTYPES, torch.bool, torch.complex64, torch.int8, torch.bfloat16]),
    st.sampled_from([0.0, 1.0, 3.0, -1.0, 1e30, math.nan, -math.inf]),
)
VALUES = st.one_of(
    st.sampled_from(ODD),
    SCALARS,
    PLAIN_TENSORS,
    numpy_st.arrays(numpy_st.scalar_dtypes(), numpy_st.array_shapes(max_dims=2, max_side=3)),
    st.lists(SCALARS, max_size=3),
    st.tuples(SCALARS, SCALARS),
    st.dictionaries(st.text(max_size=2), SCALARS, max_size=2),
)


# ---------------------------------------------------------------------------------------- refusal


def makes_sense(argument: str, value: Any) -> bool:
    """Whether a value that was accepted may have been."""
    tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if argument in TENSORS:
        return (tensor and not value.is_nested) or (argument == "image_ids" and value is None)
    if argument in CHOICES:
        return isinstance(value, str)
    if argument == "dtype":
        return isinstance(value, torch.dtype) and value.is_floating_point
    if argument == "clamp":
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        return value is None or (pair and all(type(v) in (int, float) for v in value))
    if argument == "ball":
        return value is None
    if argument == "sample_dim":
        return type(value) is int and value in (0, 1)
    if argument == "lambda_every" and value == "epoch":
        return True
    if value is None:
        return argument in ("seed", "num_samples", "tau")
    whole = argument in (*WHOLE, "lambda_every")
    if tensor:  # 0-dim, but for counts
        kinds = (torch.int64,) if whole else (*DTYPES, torch.bfloat16, torch.int8)
        return value.dtype in kinds and (not value.is_meta or argument in ("successes", "trials"))
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    return not isinstance(value, bool) and bool(isinstance(value, kinds))


@pytest.mark.parametrize("name, argument", ARGUMENTS, ids=["-".join(pair) for pair in ARGUMENTS])
@fuzz(40)
@hypothesis.given(value=VALUES)
def test_nonsense_is_refused_in_one_sentence(name: str, argument: str, value: Any) -> None:
    hypothesis.assume(not too_large(argument, value))
    assert_refused_or_sensible(name, argument, value)


@pytest.mark.parametrize("name, argument", ARGUMENTS, ids=["-".join(pair) for pair in ARGUMENTS])
def test_every_odd_value_is_refused_in_one_sentence(name: str, argument: str) -> None:
    for value in [*ODD, -(10**5000)]:  # which hypothesis cannot print
        if not too_large(argument, value):
            assert_refused_or_sensible(name, argument, value)


def too_large(argument: str, value: Any) -> bool:
    """Sound, but it asks for more memory than there is."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return argument in ("num_samples", "kappa") and whole and bool(10**6 < value < 2**32)


def assert_refused_or_sensible(name: str, argument: str, value: Any) -> None:
    try:
        result = call(name, {argument: value})
    except (TypeError, ValueError) as error:
        message = str(error)
        assert type(error) in (TypeError, ValueError)
        assert "\n" not in message and 20 < len(message) < 400, message
        assert any(word in message for word in ("must", "need", "expected", "contradict")), message
        return
    assert makes_sense(argument, value), f"{value!r} was accepted"
    if isinstance(result, torch.Tensor) and result.is_meta:
        assert value.is_meta


def test_the_sound_arguments_are_accepted() -> None:
    # Guards the tests above: a call that always raised would let each of them pass.
    for name in FUNCTIONS:
        call(name, {})


# ------------------------------------------------------------------------------- what is accepted


NUMBERS = [
    (name, argument)
    for name, argument in ARGUMENTS
    if isinstance(FUNCTIONS[name][1][argument], (int, float)) and argument != "sample_dim"
]


@pytest.mark.parametrize("name, argument", NUMBERS, ids=["-".join(pair) for pair in NUMBERS])
def test_numbers_of_numpy_count_as_numbers(name: str, argument: str) -> None:
    sound = FUNCTIONS[name][1][argument]
    kinds = [np.int64, np.int32, np.uint8] if isinstance(sound, int) else [np.float64]
    if isinstance(sound, float):
        kinds += [np.float32, np.float16, fractions.Fraction]
    for kind in kinds:
        value: Any = kind(sound)
        plain = int(value) if isinstance(sound, int) else float(value)
        got, expected = (state_of(call(name, {argument: v})) for v in (value, plain))
        assert got == expected, kind


def state_of(result: Any) -> Any:
    """Something that compares: the values of tensors, the parameters of a ball."""
    if isinstance(result, torch.Tensor):
        return result.tolist()
    if isinstance(result, tuple):
        return [state_of(one) for one in result]
    if isinstance(result, (drf_fast.HardBall, drf_fast.SoftBall)):
        state = {**vars(result), "epsilon": float(result.epsilon), "_window": None}
        return {name: float(v) if isinstance(v, torch.Tensor) else v for name, v in state.items()}
    assert isinstance(result, int)
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_default_device_of_torch_decides_nothing(name: str) -> None:
    before = state_of(call(name, {}))
    torch.set_default_device("meta")  # as torch.set_default_device("cuda"), where CUDA is
    try:
        result = call(
            name, {"counts": torch.zeros_like(counts(), device="cpu")} if name == "vote" else {}
        )
        tensors = result if isinstance(result, tuple) else (result,)
        assert not any(isinstance(t, torch.Tensor) and t.is_meta for t in tensors)
        after = state_of(result)
    finally:
        torch.set_default_device(None)
    assert after == before


def test_a_ball_whose_price_is_no_number_is_refused() -> None:
    ball = drf_fast.SoftBall(1.0)
    ball.lam.fill_(math.nan)
    with pytest.raises(ValueError, match="lam of the ball must be finite, got nan"):
        call("adversary_step", {"ball": ball})
