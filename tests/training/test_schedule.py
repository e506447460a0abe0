"""What changes from epoch to epoch: functions of the settings and the epoch alone."""

from __future__ import annotations

import pytest

from drf_fast.config.options import TrainConfig
from drf_fast.config.training import images_of_a_step, steps_of_an_epoch
from drf_fast.training import schedule


def test_the_learning_rate_drops_in_time_or_one_epoch_late():
    config = TrainConfig(epochs=9, lr=1.0, lr_drops=(1 / 3, 2 / 3))
    rates = [schedule.learning_rate(config, epoch) for epoch in range(9)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    late = TrainConfig(epochs=9, lr=1.0, lr_drops=(1 / 3, 2 / 3), late_drop=True)
    rates = [schedule.learning_rate(late, epoch) for epoch in range(9)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    short = TrainConfig(epochs=1, lr=1.0, lr_drops=(1 / 3, 2 / 3))
    assert schedule.learning_rate(short, 0) == 1.0


@pytest.mark.parametrize("late", [False, True])
def test_macers_margin_comes_with_the_first_drop(late):
    config = TrainConfig(epochs=6, lr_drops=(0.5,), macer_after_drop=True, late_drop=late)
    lams = [schedule.options(config, epoch).macer_lam for epoch in range(6)]
    assert lams == ([0.0] * (3 + late) + [12.0] * (3 - late))
    assert schedule.options(TrainConfig(), 0).macer_lam == 12.0


def test_warm_ups_are_linear_and_end_at_the_value():
    config = TrainConfig(epsilon=2.0, warmup_epochs=4, mix_eta=8.0, mix_alpha=0.5, mix_warmup=2)
    assert [schedule.epsilon(config, e) for e in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    options = [schedule.options(config, e) for e in range(3)]
    assert [o.mix_eta for o in options] == [4.0, 8.0, 8.0]
    assert [o.mix_radius for o in options] == [0.25, 0.5, 0.5]
    assert {o.mix_alpha for o in options} == {0.5}
    assert schedule.epsilon(TrainConfig(epsilon=2.0), 0) == 2.0


def test_the_options_of_an_epoch_are_the_settings():
    config = TrainConfig(sigma=0.25, num_samples=3, grad_norm="batch", catrs_lam=2.0, mix_warmup=4)
    first, second = (schedule.options(config, epoch) for epoch in (0, 1))
    changed = {"mix_eta": 1.25, "mix_radius": 0.25, "macer_lam": 12.0}
    assert vars(first) == {**vars(config), **changed}
    # A CUDA graph is captured anew where they differ.
    assert first == schedule.options(config, 0) and first != second


def test_split_batches_take_m_times_as_many_steps():
    whole = TrainConfig(batch_size=256, num_samples=4)
    split = TrainConfig(batch_size=256, num_samples=4, split_batches=True)
    assert (images_of_a_step(whole), images_of_a_step(split)) == (256, 64)
    assert (steps_of_an_epoch(whole, 60_000), steps_of_an_epoch(split, 60_000)) == (235, 938)
