"""The events that TensorBoard reads."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drf_fast.training.events import Events


def test_tensorboard_reads_them_and_drops_the_steps_trained_again(tmp_path):
    first = Events(tmp_path / "tensorboard", purge_step=1)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 8, "lambda": 0.5})
    first.close()
    again = Events(tmp_path / "tensorboard", purge_step=3)
    again.write(3, {"loss": 7.0})
    again.close()
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "lambda"}
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 0.125), (2, 0.25), (3, 7.0)]


def test_what_was_written_is_there_at_once(tmp_path):
    events = Events(tmp_path / "tensorboard", purge_step=1)
    events.write(1, {"loss": 1.0})
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in read.Scalars("loss")] == [1.0]
    events.close()
    events.close()


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(OSError):
        Events(tmp_path / "tensorboard", purge_step=1)
