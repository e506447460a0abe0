"""SoftBall: the dual variable against a plain Python transcription, its state, its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed

import drf_fast
from drf_fast.config import reading, recipes
from drf_fast.config.options import TrainConfig


def plain_lambda(
    batches: list[list[float]],
    *,
    epsilon: float,
    lambda0: float,
    lambda_lr: float,
    kappa: int,
    every: int,
) -> list[float]:
    """After each batch lambda <- max(0, lambda - zeta (epsilon - mean of the last kappa))."""
    lam, seen, path = lambda0, [], []
    for number, batch in enumerate(batches, start=1):
        seen = (seen + batch)[-kappa:]
        if number % every == 0:
            lam = max(0.0, lam - lambda_lr * (epsilon - sum(seen) / len(seen)))
        path.append(lam)
    return path


def batches(size: int, number: int, level: float = 1.0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(size)
    return [
        (level * torch.rand(size, generator=generator, dtype=torch.float64)).tolist()
        for _ in range(number)
    ]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kappa", [1, 4, 7, 16, 100])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_lambda_follows_the_transcription(size, kappa, every):
    options: dict[str, Any] = {"epsilon": 0.6, "lambda0": 1.0, "lambda_lr": 0.3, "kappa": kappa}
    data = batches(size, 20)
    ball = drf_fast.SoftBall(**options, lambda_every=every)
    got = []
    for batch in data:
        ball.update(torch.tensor(batch, dtype=torch.float64))
        got.append(float(ball.lam))
    assert got == pytest.approx(plain_lambda(data, **options, every=every), abs=1e-13)


def test_lambda_rises_above_epsilon_falls_below_it_and_stops_at_zero():
    ball = drf_fast.SoftBall(1.0, lambda0=0.5, lambda_lr=0.1, kappa=2, lambda_every=1)
    ball.update(torch.tensor([2.0, 2.0]))
    assert float(ball.lam) == pytest.approx(0.6)
    ball.update(torch.tensor([0.0, 0.0]))
    assert float(ball.lam) == pytest.approx(0.5)
    for _ in range(10):
        ball.update(torch.tensor([0.0, 0.0]))
    assert float(ball.lam) == 0.0


def test_per_epoch_lambda_changes_only_at_the_end_of_one():
    data = batches(8, 6, level=3.0)
    ball = drf_fast.SoftBall(1.0, lambda0=1.0, lambda_lr=0.5, kappa=20, lambda_every="epoch")
    ball.end_epoch()  # nothing was seen yet
    for batch in data:
        ball.update(torch.tensor(batch))
        assert float(ball.lam) == 1.0
    ball.end_epoch()
    last = [value for batch in data for value in batch][-20:]
    assert float(ball.lam) == pytest.approx(1.0 + 0.5 * (sum(last) / 20 - 1.0), abs=1e-6)


def test_end_of_epoch_changes_nothing_where_steps_do():
    ball = drf_fast.SoftBall(1.0, lambda_every=1)
    ball.update(torch.tensor([3.0]))
    lam = float(ball.lam)
    ball.end_epoch()
    assert float(ball.lam) == lam


def test_epsilon_may_be_warmed_up_and_may_be_a_tensor():
    for epsilon in (0.25, torch.tensor(0.25)):
        ball = drf_fast.SoftBall(1.0, lambda0=1.0, lambda_lr=1.0, lambda_every=1)
        ball.epsilon = epsilon
        ball.update(torch.tensor([0.75]))
        assert float(ball.lam) == pytest.approx(1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_distances_of_any_floating_dtype_are_averaged_in_float64(dtype):
    ball = drf_fast.SoftBall(1.0, lambda0=1.0, lambda_lr=1.0, kappa=4096, lambda_every=1)
    values = torch.full((4096,), 1.25, dtype=dtype)
    ball.update(values)
    assert float(ball.lam) == 1.25 and ball.lam.dtype == torch.float64


def test_the_state_round_trips_and_continues_as_if_never_interrupted(tmp_path):
    data = batches(5, 12)
    options: dict[str, Any] = {"lambda_lr": 0.3, "kappa": 7, "lambda_every": 3}
    ball, twin = drf_fast.SoftBall(0.6, **options), drf_fast.SoftBall(0.6, **options)
    for batch in data[:5]:
        ball.update(torch.tensor(batch))
        twin.update(torch.tensor(batch))
    torch.save(ball.state_dict(), tmp_path / "ball.pt")
    restored = drf_fast.SoftBall(0.6, lambda0=9.0, **options)
    restored.load_state_dict(torch.load(tmp_path / "ball.pt", weights_only=True))
    for batch in data[5:]:
        restored.update(torch.tensor(batch))
        twin.update(torch.tensor(batch))
        assert float(restored.lam) == float(twin.lam)


def test_a_restored_ball_shares_no_memory_with_its_state():
    ball = drf_fast.SoftBall(1.0, kappa=3, lambda_every=1)
    ball.update(torch.tensor([2.0]))
    state = ball.state_dict()
    copy = drf_fast.SoftBall(1.0, kappa=3, lambda_every=1)
    copy.load_state_dict(state)
    copy.update(torch.tensor([5.0, 5.0, 5.0]))
    assert float(copy.lam) > float(ball.lam) == float(state["lam"])


def test_a_state_is_a_snapshot_that_later_updates_leave_alone():
    ball = drf_fast.SoftBall(1.0, kappa=3, lambda_every=1)
    state = ball.state_dict()
    ball.update(torch.tensor([5.0]))
    assert float(state["lam"]) == 1.0 and bool(state["window"].isnan().all())


def good_state() -> dict[str, Any]:
    return drf_fast.SoftBall(1.0, kappa=3).state_dict()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"lam": torch.tensor(1.0)},
        {**good_state(), "window": torch.full((4,), math.nan, dtype=torch.float64)},
        {**good_state(), "window": [1.0, 2.0, 3.0]},
        {**good_state(), "lam": 1.0},
        {**good_state(), "lam": torch.ones(2, dtype=torch.float64)},
        {**good_state(), "lam": torch.tensor(-1.0, dtype=torch.float64)},
        {**good_state(), "lam": torch.tensor(math.nan, dtype=torch.float64)},
        {**good_state(), "updates": "many"},
        {**good_state(), "updates": -1},
    ],
    ids=[
        "empty",
        "only lambda",
        "another kappa",
        "window no tensor",
        "lambda no tensor",
        "lambda of shape (2,)",
        "lambda negative",
        "lambda nan",
        "updates no number",
        "updates negative",
    ],
)
def test_a_state_of_something_else_is_refused_and_leaves_the_ball_alone(state):
    ball = drf_fast.SoftBall(1.0, lambda0=0.7, kappa=3)
    with pytest.raises(ValueError, match="expected the state of a SoftBall with kappa=3, got"):
        ball.load_state_dict(state)
    assert float(ball.lam) == 0.7 and ball.state_dict()["updates"] == 0


def test_several_processes_hold_one_lambda_from_the_mean_over_all(monkeypatch):
    # The other process saw the distances 4 and 5; all_reduce adds its sum and its count.
    def all_reduce(tensor: torch.Tensor) -> None:
        tensor += torch.tensor([9.0, 2.0])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    ball = drf_fast.SoftBall(1.0, lambda0=0.0, lambda_lr=1.0, lambda_every=1)
    ball.update(torch.tensor([1.0, 2.0, 3.0]))
    assert float(ball.lam) == pytest.approx(15 / 5 - 1)


@pytest.mark.parametrize("form", ["prox", "excess", "shrink", "udr"])
def test_in_training_lambda_steers_the_mean_distance_to_epsilon(form):
    # A loss whose gradient never vanishes, as an attack sees it; only lambda holds distances back.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(16, 12, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (16,), generator=generator)
    epsilon = 0.3
    # excess cannot hold less than epsilon: lambda = 1 is the hard ball, of udr too.
    ball = drf_fast.SoftBall(
        epsilon, lambda0=0.2, lambda_lr=0.5, kappa=16, form=form, lambda_every=1
    )
    for _ in range(30):
        adv = drf_fast.attack(
            lambda rows: rows @ weight,
            x,
            target,
            sigma=0.25,
            num_samples=2,
            steps=4,
            step_size=0.3,
            ball=ball,
            seed=1,
            image_ids=torch.arange(16),
        )
        ball.update(adv.distance)
    assert float(adv.distance.mean()) == pytest.approx(epsilon, rel=0.02)


def test_the_default_is_one_reading_everywhere():
    ball, config = drf_fast.SoftBall(1.0), TrainConfig()
    assert (ball.form, ball.lambda_every, float(ball.lam)) == (
        reading.FORM, reading.LAMBDA_EVERY, reading.LAMBDA0,
    )  # fmt: skip
    assert (config.form, config.lambda_every, config.lambda0, config.lambda_lr, config.kappa) == (
        ball.form, ball.lambda_every, float(ball.lam), ball.lambda_lr, ball.kappa,
    )  # fmt: skip
    assert f"``{reading.FORM}`` (default)" in str(drf_fast.SoftBall.__doc__)
    for name in recipes.NAMES:
        values = recipes.get(name, 0.5)
        if values.get("drf"):
            lambda0 = 2.0 if "consistency" in name else reading.LAMBDA0
            assert (values["form"], values["lambda_every"], values["lambda0"]) == (
                reading.FORM, reading.LAMBDA_EVERY, lambda0,
            )  # fmt: skip


def test_tau_belongs_to_udr():
    with pytest.raises(ValueError, match="tau belongs to form 'udr', got tau=0.5 with form='prox'"):
        drf_fast.SoftBall(1.0, form="prox", tau=0.5)
    with pytest.raises(ValueError, match="tau must be above 0, got 0"):
        drf_fast.SoftBall(1.0, form="udr", tau=0.0)


def test_its_repr_names_every_parameter():
    assert repr(drf_fast.SoftBall(0.5, kappa=8)) == (
        "SoftBall(epsilon=0.5, lam=1, lambda_lr=0.02, kappa=8, form='prox', lambda_every=1)"
    )
    assert repr(drf_fast.SoftBall(0.5, form="udr", tau=0.25)).endswith("lambda_every=1, tau=0.25)")
    assert repr(drf_fast.HardBall(0.5)) == "HardBall(epsilon=0.5)"


def test_lambda_is_one_tensor_that_is_written_to():
    ball = drf_fast.SoftBall(1.0, kappa=3)
    lam, state = ball.lam, drf_fast.SoftBall(1.0, lambda0=0.25, kappa=3).state_dict()
    ball.load_state_dict(state)  # a captured CUDA graph would go on reading the same memory
    assert ball.lam is lam and float(lam) == 0.25
    ball.lam = 0.5
    assert ball.lam is lam and float(lam) == 0.5
    x, label = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    drf_fast.attack(torch.nn.Flatten(), x, label, sigma=0.5, num_samples=2, steps=1, ball=ball)
    with pytest.raises(ValueError, match="lam must be 0 or more, got -1"):
        ball.lam = -1


def test_a_ball_made_in_inference_mode_is_updated_outside_it():
    with torch.inference_mode():
        ball = drf_fast.SoftBall(1.0, lambda_lr=0.5, kappa=2)
        ball.update(torch.tensor([3.0]))
    ball.update(torch.tensor([3.0]))
    assert float(ball.lam) == 3.0


def test_a_ball_stays_on_the_device_of_the_distances():
    torch.set_default_device("meta")  # as torch.set_default_device("cuda"), where CUDA is
    try:
        ball = drf_fast.SoftBall(1.0, lambda_lr=0.5)
    finally:
        torch.set_default_device(None)
    ball.update(torch.full((4,), 3.0))
    assert float(ball.lam) == 2.0
