"""TensorBoard events, written synchronously.

``torch.utils.tensorboard`` writes them in a background thread, where an error such as a full disk
is printed but does not reach the run.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """One file of events in ``folder``.

    Args:
        folder: created if it does not exist.
        purge_step: TensorBoard ignores events of earlier files from this step on.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        import tensorboard.compat.proto.event_pb2 as protocol
        from tensorboard.summary.writer.record_writer import RecordWriter

        message: Any = protocol  # Any: its classes are generated at import
        self._event = message.Event
        folder.mkdir(exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.0f}.{platform.node()}.{os.getpid()}.0"
        self._file = (folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._add(self._event(wall_time=now, file_version="brain.Event:2"))
        start = message.SessionLog(status=message.SessionLog.START)
        self._add(self._event(wall_time=now, step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each name."""
        import tensorboard.compat.proto.summary_pb2 as protocol

        message: Any = protocol  # Any: its classes are generated at import
        scalars = [message.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        summary = message.Summary(value=scalars)
        self._add(self._event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
