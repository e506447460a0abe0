"""Where the processes of a job meet: who is there, who refused and why, who still works.

A key-value store of torch, in torchrun or in process 0, of which every process is a client. It is
needed beside the collective operations because those only say that something failed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from drf_fast.errors import InputError, RunError

_T = TypeVar("_T")
_ANSWER = 5.0  # seconds within which the store answers, or is as good as gone
_BEAT = 1.0  # seconds between two signs of life
_LINGER = 20.0  # seconds for which process 0 keeps the store for those who have not read it
_POLL = 0.05


class Meeting:
    """What the processes of a job know of each other.

    Args:
        rank, size: of this process, and of the job.
        timeout: seconds within which the others have to come and to answer.

    Raises:
        RunError: there is nobody at MASTER_ADDR and MASTER_PORT in time.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._last_beat = 0.0
        # torchrun keeps the store itself, so that it outlives each of the processes.
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.host = rank == 0 and not kept
        try:
            tcp = dist.TCPStore(  # type: ignore[reportPrivateImportUsage]
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=self.host,
                timeout=datetime.timedelta(seconds=timeout),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise RunError(
                f"process {rank} of {size}: expected the meeting place of the processes at "
                f"{self.address}, got {' '.join(str(error).split())[:120]}; start process 0 too, "
                "and see MASTER_ADDR and MASTER_PORT"
            ) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"drf_fast/{attempt}", tcp)  # type: ignore[reportPrivateImportUsage]

    def part(self, name: str) -> Any:
        """A part of the store with names of its own."""
        return dist.PrefixStore(name, self.store)  # type: ignore[reportPrivateImportUsage]

    def arrive(self) -> None:
        """Say that this process is ready, and wait for all others.

        Raises:
            InputError: two processes have one rank.
            RunError: another process refused, or did not come in time.
        """
        if self._ask(lambda: self.store.add(f"taken/{self.rank}", 1)) != 1:
            raise InputError(
                f"RANK {self.rank} is that of two processes at {self.address}: expected each "
                f"number from 0 to {self.size - 1} once; start them anew, at another MASTER_PORT"
            )
        self._ask(lambda: self.store.set(f"word/{self.rank}", ""))
        until = time.monotonic() + self.timeout
        while True:
            missing = self._without("word")
            self._raise_refusal()
            if not missing:
                return
            if time.monotonic() > until:
                raise RunError(
                    f"process {self.rank} of {self.size}: expected all processes at {self.address} "
                    f"within {self.timeout:g} s, got no {_named(missing)}; start all of them, or "
                    "raise --timeout"
                )
            time.sleep(_POLL)

    def refuse(self, reason: str) -> None:
        """Tell the others why this process ends, and let them read it. Never raises."""
        with contextlib.suppress(RunError, RuntimeError):
            self._ask(lambda: self.store.set(f"word/{self.rank}", reason or "an error"))
            if self.host:  # the store ends with this process
                until = time.monotonic() + min(_LINGER, self.timeout)
                while time.monotonic() < until and any(
                    not self._word(rank) and rank in self._without("read")
                    for rank in range(1, self.size)
                ):
                    time.sleep(_POLL)

    def beat(self) -> None:
        """A sign of life, at most one a second."""
        now = time.monotonic()
        if now - self._last_beat > _BEAT:
            self._last_beat = now
            self._ask(lambda: self.store.set(f"beat/{self.rank}", repr(now)))

    def wait_for_all(self, name: str) -> None:
        """Return when all processes are here, however long they work.

        Raises:
            RunError: one refused, or gave no sign of life for the time-out.
        """
        self._ask(lambda: self.store.set(f"{name}/{self.rank}", ""))
        seen: dict[int, Any] = {}
        since: dict[int, float] = {}
        while missing := self._without(name):
            self._raise_refusal()
            now = time.monotonic()
            for rank in missing:
                sign = self._get(f"beat/{rank}")
                if rank not in since or sign != seen[rank]:
                    seen[rank], since[rank] = sign, now
            silent = [rank for rank in missing if now - since[rank] > self.timeout]
            if silent:
                raise RunError(self._unanswered(silent))
            time.sleep(_POLL if now < min(since.values()) + 1 else 0.5)

    def explain(self, error: BaseException) -> RunError:
        """Why a collective operation failed: who refused, or who did not answer."""
        try:
            self._ask(lambda: self.store.set(f"failed/{self.rank}", ""))
            until = time.monotonic() + _ANSWER
            while time.monotonic() < until:
                self._raise_refusal()
                if not self._without("failed"):
                    break
                time.sleep(_POLL)
            silent = self._without("failed")
        except RunError as found:
            return found
        if silent:
            return RunError(self._unanswered(silent))
        return RunError(
            f"process {self.rank} of {self.size}: a collective operation failed, expected all "
            f"processes to take part, got {' '.join(str(error).split())[:120]}; go on with --resume"
        )

    def _unanswered(self, ranks: list[int]) -> str:
        return (
            f"process {self.rank} of {self.size}: expected an answer of all processes within "
            f"{self.timeout:g} s, got none of {_named(ranks)}; see whether it and its machine "
            "still run (or raise --timeout), and go on with --resume"
        )

    def _raise_refusal(self) -> None:
        for rank in range(self.size):
            reason = self._word(rank) if rank != self.rank else ""
            if reason:
                self._ask(lambda: self.store.set(f"read/{self.rank}", ""))
                raise RunError(
                    f"process {self.rank} of {self.size}: expected all processes to take part, got "
                    f"the end of process {rank}: {reason}"
                )

    def _word(self, rank: int) -> str:
        return self._get(f"word/{rank}").decode(errors="replace")

    def _get(self, key: str) -> bytes:
        return self._ask(lambda: self.store.get(key) if self.store.check([key]) else b"")

    def _without(self, name: str) -> list[int]:
        """The processes that have not set ``name``."""
        ranks = [rank for rank in range(self.size) if rank != self.rank]
        return self._ask(lambda: [r for r in ranks if not self.store.check([f"{name}/{r}"])])

    def _ask(self, operation: Callable[[], _T]) -> _T:
        """What the store answers; where it stands in a stopped process, it never does.

        Raises:
            RunError: it does not.
        """
        found: list[Any] = []
        failed: list[Exception] = []

        def ask() -> None:
            try:
                found.append(operation())
            except Exception as error:  # whatever a broken connection raises
                failed.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(_ANSWER)
        if found:
            return found[0]
        what = "no answer" if not failed else " ".join(str(failed[0]).split())[:80]
        raise RunError(
            f"process {self.rank} of {self.size}: expected an answer of the meeting place at "
            f"{self.address}, which process 0 or torchrun keeps, got {what}; see whether that "
            "process and its machine still run, and go on with --resume"
        ) from (failed[0] if failed else None)


def _named(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
