"""State that the processes of a job share: which have started, which ended and why, heartbeats.

It lies in a key-value store of torch, kept by torchrun or by process 0, of which every process is a
client. It is needed beside the collective operations because those only say that one failed, not
which process is to blame.
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
from drf_fast.runtime.text import message_of

_T = TypeVar("_T")
_STORE_TIMEOUT = 5.0  # seconds until the store counts as unreachable
_HEARTBEAT_INTERVAL = 1.0  # seconds
_REFUSAL_READ_TIMEOUT = 20.0  # seconds that process 0 waits for the others to read why it ends
_POLL_INTERVAL = 0.05  # seconds


class Meeting:
    """The store that the processes of a job share, and how long to wait for each other.

    Args:
        rank: number of this process.
        size: number of processes of the job.
        timeout: seconds within which the others have to start and to answer.

    Raises:
        RunError: no store at MASTER_ADDR and MASTER_PORT in time.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._last_heartbeat = 0.0
        # torchrun keeps the store itself, so that it outlives each of the processes.
        kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.host = rank == 0 and not kept_by_torchrun
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
                f"{self.address}, got {message_of(error, 120)}; start process 0 too, "
                "and see MASTER_ADDR and MASTER_PORT"
            ) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"drf_fast/{attempt}", tcp)  # type: ignore[reportPrivateImportUsage]

    def namespace(self, name: str) -> Any:
        """The store with all keys prefixed by ``name``."""
        return dist.PrefixStore(name, self.store)  # type: ignore[reportPrivateImportUsage]

    def arrive(self) -> None:
        """Report that this process is ready, and wait for all others.

        Raises:
            InputError: two processes have the same rank.
            RunError: another process ended, or did not start in time.
        """
        if self._call_store(lambda: self.store.add(f"taken/{self.rank}", 1)) != 1:
            raise InputError(
                f"RANK {self.rank} is that of two processes at {self.address}: expected each "
                f"number from 0 to {self.size - 1} once; start them anew, at another MASTER_PORT"
            )
        self._call_store(lambda: self.store.set(f"status/{self.rank}", ""))
        until = time.monotonic() + self.timeout
        while True:
            missing = self._ranks_without("status")
            self._raise_refusal()
            if not missing:
                return
            if time.monotonic() > until:
                raise RunError(
                    f"process {self.rank} of {self.size}: expected all processes at {self.address} "
                    f"within {self.timeout:g} s, got no {_rank_names(missing)}; start all of them, "
                    "or raise --timeout"
                )
            time.sleep(_POLL_INTERVAL)

    def refuse(self, reason: str, then: Callable[[], None] = lambda: None) -> None:
        """Tell the others why this process ends, and wait until they have read it. Never raises.

        ``then`` is called when it is told, and before the wait.
        """
        with contextlib.suppress(RunError, RuntimeError):
            self._call_store(lambda: self.store.set(f"status/{self.rank}", reason or "an error"))
            then()
            if self.host:  # the store ends together with this process
                until = time.monotonic() + min(_REFUSAL_READ_TIMEOUT, self.timeout)
                while time.monotonic() < until and any(
                    not self._refusal_of(rank) and rank in self._ranks_without("read")
                    for rank in range(1, self.size)
                ):
                    time.sleep(_POLL_INTERVAL)

    def heartbeat(self) -> None:
        """Report that this process still works, at most once a second."""
        now = time.monotonic()
        if now - self._last_heartbeat > _HEARTBEAT_INTERVAL:
            self._last_heartbeat = now
            self._call_store(lambda: self.store.set(f"heartbeat/{self.rank}", repr(now)))

    def wait_for_all(self, name: str) -> None:
        """A barrier without time limit, as long as all processes keep sending heartbeats.

        Raises:
            RunError: one ended, or sent no heartbeat for the time-out.
        """
        self._call_store(lambda: self.store.set(f"{name}/{self.rank}", ""))
        last_seen: dict[int, Any] = {}
        since: dict[int, float] = {}
        while missing := self._ranks_without(name):
            self._raise_refusal()
            now = time.monotonic()
            for rank in missing:
                heartbeat = self._get(f"heartbeat/{rank}")
                if rank not in since or heartbeat != last_seen[rank]:
                    last_seen[rank], since[rank] = heartbeat, now
            silent = [rank for rank in missing if now - since[rank] > self.timeout]
            if silent:
                raise RunError(self._silent_message(silent, f" within {self.timeout:g} s"))
            time.sleep(_POLL_INTERVAL if now < min(since.values()) + 1 else 0.5)

    def explain(self, error: BaseException) -> RunError:
        """The error to raise for a failed collective: names the process that ended or is silent."""
        try:
            self._call_store(lambda: self.store.set(f"failed/{self.rank}", ""))
            until = time.monotonic() + _STORE_TIMEOUT
            while time.monotonic() < until:
                self._raise_refusal()
                if not self._ranks_without("failed"):
                    break
                time.sleep(_POLL_INTERVAL)
            silent = self._ranks_without("failed")
        except RunError as reason:
            return reason
        if silent:
            # One that was killed is noticed before the time-out.
            return RunError(self._silent_message(silent))
        return RunError(
            f"process {self.rank} of {self.size}: a collective operation failed, expected all "
            f"processes to take part, got {message_of(error, 120)}; go on with --resume"
        )

    def _silent_message(self, ranks: list[int], within: str = "") -> str:
        return (
            f"process {self.rank} of {self.size}: expected an answer of all processes{within}, got "
            f"none of {_rank_names(ranks)}; see whether it and its machine still run (or raise "
            "--timeout), and go on with --resume"
        )

    def _raise_refusal(self) -> None:
        for rank in range(self.size):
            reason = self._refusal_of(rank) if rank != self.rank else ""
            if reason:
                self._call_store(lambda: self.store.set(f"read/{self.rank}", ""))
                raise RunError(
                    f"process {self.rank} of {self.size}: expected all processes to take part, got "
                    f"the end of process {rank}: {reason}"
                )

    def _refusal_of(self, rank: int) -> str:
        return self._get(f"status/{rank}").decode(errors="replace")

    def _get(self, key: str) -> bytes:
        return self._call_store(lambda: self.store.get(key) if self.store.check([key]) else b"")

    def _ranks_without(self, name: str) -> list[int]:
        """The processes that have not set ``name``."""
        ranks = [rank for rank in range(self.size) if rank != self.rank]
        return self._call_store(lambda: [r for r in ranks if not self.store.check([f"{name}/{r}"])])

    def _call_store(self, operation: Callable[[], _T]) -> _T:
        """The result of a call of the store, in a thread: a stopped process's store never answers.

        Raises:
            RunError: no answer within ``_STORE_TIMEOUT``, or the call failed.
        """
        results: list[Any] = []
        errors: list[Exception] = []

        def call() -> None:
            try:
                results.append(operation())
            except Exception as error:  # whatever a broken connection raises
                errors.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(_STORE_TIMEOUT)
        if results:
            return results[0]
        what = "no answer" if not errors else " ".join(str(errors[0]).split())[:80]
        raise RunError(
            f"process {self.rank} of {self.size}: expected an answer of the meeting place at "
            f"{self.address}, which process 0 or torchrun keeps, got {what}; see whether that "
            "process and its machine still run, and go on with --resume"
        ) from (errors[0] if errors else None)


def _rank_names(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
