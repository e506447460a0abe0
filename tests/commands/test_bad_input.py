"""Bad input to the Python API: the exception, and that it says what was expected, what came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from good_calls import (
    IDS,
    LOGITS,
    META,
    TARGET,
    Case,
    X,
    assert_refused,
    attack,
    ce,
    consistency,
    ints,
    macer,
    noisy,
    step,
    vote,
)

import drf_fast
from drf_fast.errors import InputError
from drf_fast.training import methods

NUMBERS: list[Case] = [
    (f"{name}={value}", lambda f=f, name=name, value=value: f(**{name: value}), kind, message)
    for f, name, value, kind, message in [
        *[
            (f, "sigma", value, ValueError, f"sigma must be (above 0|finite), got {value}")
            for f in (noisy, macer, step, attack)
            for value in (0.0, -0.5, math.inf, math.nan)
        ],
        (noisy, "sigma", torch.tensor(-1.0), ValueError, "sigma must be above 0, got -1"),
        (noisy, "sigma", torch.ones(2), ValueError, r"0-dim tensor, got shape \(2,\)"),
        (noisy, "sigma", "0.5", TypeError, "sigma must be a number .*, got str '0.5'"),
        (noisy, "sigma", True, TypeError, "sigma must be a number .*, got bool"),
        (noisy, "sigma", torch.tensor(1.0, requires_grad=True), ValueError, "must not require"),
        (consistency, "lam", -1.0, ValueError, "lam must be 0 or more, got -1"),
        (consistency, "lam", math.nan, ValueError, "lam must be finite, got nan"),
        (consistency, "eta", -1.0, ValueError, "eta must be 0 or more, got -1"),
        (macer, "lam", -1.0, ValueError, "lam must be 0 or more, got -1"),
        (macer, "beta", 0.0, ValueError, "beta must be above 0, got 0"),
        (macer, "gamma", -1.0, ValueError, "gamma must be 0 or more, got -1"),
        (step, "step_size", -0.1, ValueError, "step_size must be 0 or more, got -0.1"),
        (step, "step_size", math.inf, ValueError, "step_size must be finite, got inf"),
        (noisy, "m", 0, ValueError, r"num_samples must lie in 1\..*, got 0"),
        (noisy, "m", 2.0, TypeError, "num_samples must be an int, got float 2.0"),
        (attack, "steps", 0, ValueError, r"steps must lie in 1\..*, got 0"),
        (attack, "num_samples", 0, ValueError, r"num_samples must lie in 1\..*, got 0"),
    ]
]

NOISE: list[Case] = [
    ("a seed without ids", lambda: noisy(seed=1), ValueError, "explicit seed needs image_ids"),
    ("a seed without ids, attack", lambda: attack(seed=1), ValueError, "seed needs image_ids"),
    ("a seed without ids, step", lambda: step(image_ids=None), ValueError, "seed needs image_ids"),
    ("a step without seed", lambda: step(seed=None), ValueError, "step needs the seed.*got .*None"),
    (
        "a step without seed and ids",
        lambda: step(seed=None, image_ids=None),
        ValueError,
        "got seed=None, .* pass seed and image_ids, .* or use attack",
    ),
    ("65 bits", lambda: noisy(seed=2**64, image_ids=IDS), ValueError, "fit 64 bits.*got 1844"),
    ("float seed", lambda: noisy(seed=1.0, image_ids=IDS), TypeError, "an int.*got float 1.0"),
    ("bool seed", lambda: noisy(seed=True, image_ids=IDS), TypeError, "an int.*got bool"),
    (
        "float seed tensor",
        lambda: noisy(seed=torch.tensor(1.0), image_ids=IDS),
        ValueError,
        "0-dim int64 tensor, got torch.float32",
    ),
    (
        "ids of another length",
        lambda: noisy(seed=1, image_ids=torch.arange(3)),
        ValueError,
        r"int64 of shape \(2,\), got torch.int64 of shape \(3,\)",
    ),
    ("float ids", lambda: noisy(seed=1, image_ids=IDS.float()), ValueError, "got torch.float32"),
    ("list of ids", lambda: noisy(seed=1, image_ids=[0, 1]), TypeError, "Tensor, got list"),
    (
        "negative ids",
        lambda: noisy(seed=1, image_ids=ints(-1, 0)),
        ValueError,
        r"lie in 0\.\.2\^32-1, got values from -1 to 0",
    ),
    ("large ids", lambda: noisy(seed=1, image_ids=ints(0, 2**32)), ValueError, "got values from 0"),
    ("stream", lambda: noisy(stream="test"), ValueError, "one of 'train', .* got 'test'"),
    ("offset", lambda: noisy(sample_offset=-1), ValueError, "sample_offset must lie in 0.*got -1"),
    (
        "offset beyond 32 bits",
        lambda: noisy(sample_offset=2**32 - 1),
        ValueError,
        "sample_offset must lie in",
    ),
    (
        "float offset tensor",
        lambda: noisy(sample_offset=torch.tensor(1.0)),
        ValueError,
        "sample_offset must be an int or a 0-dim int64 tensor, got torch.float32",
    ),
    ("key of a string", lambda: drf_fast.noise_key("a", 0), TypeError, "must be an int.*got str"),  # type: ignore[arg-type]
    ("negative step", lambda: drf_fast.noise_key(0, -1), ValueError, "step must lie in 0.*got -1"),
]

IMAGES: list[Case] = [
    ("numpy", lambda: noisy(np.zeros((2, 3))), TypeError, "x must be a torch.Tensor, got ndarray"),
    ("integers", lambda: noisy(X.byte()), TypeError, "x must be float32.*got torch.uint8"),
    ("no batch", lambda: noisy(X[:0]), ValueError, r"at least one image.*got shape \(0, 1, 3, 3\)"),
    ("no pixel", lambda: noisy(X[:, :0]), ValueError, r"at least one pixel.*\(2, 0, 3, 3\)"),
    ("no dimension", lambda: noisy(torch.zeros(5)), ValueError, r"\(B, \.\.\.\).*got shape \(5,\)"),
    *[
        (name, lambda x=x: attack(x), ValueError, message)
        for name, x, message in [
            ("above 1", X * 255, r"lie inside clamp=\(0, 1\), got values from .*x / 255"),
            ("below 0", X - 2, r"lie inside clamp=\(0, 1\), got values from -"),
            ("NaN image", X * math.nan, r"lie inside clamp=\(0, 1\), got values from nan"),
        ]
    ],
    ("empty attack", lambda: attack(X[:0], TARGET[:0]), ValueError, "at least one image.*got"),
    ("labels of attack", lambda: attack(target=ints(0, 4)), ValueError, r"lie in 0\.\.3.*got 4"),
    ("clamp order", lambda: step(clamp=(1, 0)), ValueError, r"low < high.*got \(1, 0\)"),
    ("clamp number", lambda: step(clamp=1.0), ValueError, r"clamp must be \(low, high\).*got 1.0"),
    ("clamp of three", lambda: step(clamp=(0, 1, 2)), ValueError, r"clamp must be.*\(0, 1, 2\)"),
    ("clamp in attack", lambda: attack(clamp=1.0), ValueError, r"clamp must be.*got 1.0"),
    ("grad_norm", lambda: step(grad_norm="l2"), ValueError, "'image', 'batch', 'none', got 'l2'"),
    (
        "grad rows",
        lambda: step(torch.zeros(3, 1, 3, 3)),
        ValueError,
        r"grad \(B\*m.*\(3, 1, 3, 3\)",
    ),
    ("x_adv shape", lambda: step(x_adv=X[:1]), ValueError, r"x and x_adv.*\(1, 1, 3, 3\)"),
    ("x_adv dtype", lambda: step(x_adv=X.double()), TypeError, "dtype of x, torch.float32, got"),
    ("grad device", lambda: step(META.repeat(2, 1, 1, 1)), ValueError, "one device, got grad on m"),
    ("x_adv device", lambda: step(x_adv=META), ValueError, "one device, got x_adv on meta"),
    ("ball of attack", lambda: attack(ball=1.0), TypeError, "HardBall, a SoftBall .* got float"),
    ("ball of step", lambda: step(ball=1.0), TypeError, "HardBall, a SoftBall .* got float"),
]

OBJECTS: list[Case] = [
    ("hard ball 0", lambda: drf_fast.HardBall(0.0), ValueError, "epsilon must be above 0, got 0"),
    ("hard ball str", lambda: drf_fast.HardBall("1"), TypeError, "epsilon must be .*got str '1'"),  # type: ignore[arg-type]
    *[
        (f"soft ball {options}", lambda o=options: drf_fast.SoftBall(**{"epsilon": 1.0, **o}), k, t)
        for options, k, t in [
            ({"epsilon": -1.0}, ValueError, "epsilon must be above 0, got -1"),
            ({"epsilon": math.nan}, ValueError, "epsilon must be finite, got nan"),
            ({"lambda0": -0.1}, ValueError, "lambda0 must be 0 or more, got -0.1"),
            ({"lambda_lr": 0.0}, ValueError, "lambda_lr must be above 0, got 0"),
            ({"kappa": 0}, ValueError, "kappa must lie in 1.*got 0"),
            ({"kappa": 1.5}, TypeError, "kappa must be an int, got float 1.5"),
            ({"form": "hard"}, ValueError, "form must be one of 'prox', .*got 'hard'"),
            ({"lambda_every": 0}, ValueError, "lambda_every must lie in 1.*got 0"),
            ({"lambda_every": "step"}, ValueError, "lambda_every must be .*'epoch'.*got 'step'"),
        ]
    ],
    (
        "no distances",
        lambda: drf_fast.SoftBall(1.0).update(torch.zeros(0)),
        ValueError,
        r"distance must be \(B,\), B >= 1, got shape \(0,\)",
    ),
    (
        "distances as a list",
        lambda: drf_fast.SoftBall(1.0).update([1.0]),  # type: ignore[arg-type]
        TypeError,
        "distance must be a torch.Tensor, got list",
    ),
    *[
        (f"classifier {options}", lambda o=options: classifier(**o), kind, text)
        for options, kind, text in [
            ({"num_classes": 1}, ValueError, r"num_classes must lie in 2\.\..*got 1"),
            ({"sigma": 0.0}, ValueError, "sigma must be above 0, got 0"),
            (
                {"precision": "fp16"},
                ValueError,
                "precision must be one of 'fp32', .*got 'fp",
            ),
            ({"seed": 2**64}, ValueError, "seed must fit 64 bits"),
        ]
    ],
    ("method", lambda: methods.get("pgd"), InputError, "one of gaussian, .*got 'pgd'"),
]


def classifier(num_classes: int = 4, sigma: float = 0.5, **options: Any) -> Any:
    return drf_fast.SmoothedClassifier(
        lambda rows: LOGITS[: len(rows)], num_classes, sigma, **options
    )


CASES = [*NUMBERS, *NOISE, *IMAGES, *OBJECTS]


@pytest.mark.parametrize(
    "call, kind, message", [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_named_with_what_was_expected_and_what_came(call, kind, message):
    assert_refused(call, kind, message)


def test_the_same_calls_without_the_fault_run():
    # Guards the table above: a helper that always raised would let every case pass.
    for call in (noisy, ce, consistency, macer, step, attack, vote):
        call()
    classifier().predict(torch.zeros(1, 2, 2), 5, 0.01, 5)


def test_a_base_that_is_no_network_is_refused():
    with pytest.raises(TypeError, match="base must be a network, a callable, got int"):
        drf_fast.SmoothedClassifier(3, 10, 0.5)  # type: ignore[arg-type]


def test_a_network_that_returns_no_tensor_is_refused():
    smoothed = drf_fast.SmoothedClassifier(lambda rows: {"scores": rows}, 10, 0.5)
    with pytest.raises(TypeError, match="must return logits: a tensor, .* got "):
        smoothed.certify(torch.rand(1, 4, 4), 2, 2, 0.1, 2)
