"""Votes of a network under noise: the loop in which certification spends its time.

Rows of one forward pass are noisy copies of one image, or, where an image needs few of them, of
several. Counts stay on the device, in int64; the loop waits for it only at its end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from drf_fast import functional
from drf_fast.certification.network import RunNetwork
from drf_fast.certification.noise import (
    GaussianNoise,
    RowTest,
    check_alone,
    check_rows,
    rows_to_test,
)
from drf_fast.certification.passes import Passes, Votes
from drf_fast.errors import InputError
from drf_fast.runtime import machine, processes
from drf_fast.runtime.fastest import best_seconds
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.progress import say

_BATCH_SIZES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048, 4096, 8192, 16384)}
_PROBE_ROWS = 128  # rows of the forward passes that choose the network's form
_TESTED_ROWS = 256  # of a network, at most: all that a pass may have would need memory twice
_TESTED_AGAIN = 16  # of a callable, at each later call
_MAX_PIXELS = 2**28  # of a measured forward pass, so that measuring does not exhaust a GPU's memory


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_at_a_time(method: _Method) -> _Method:
    """Let one thread of several into the methods of an object of ``NoisyVotes``."""

    @functools.wraps(method)
    def locked(self: NoisyVotes, *args: Any, **options: Any) -> Any:
        with self._lock:
            return method(self, *args, **options)

    return locked  # type: ignore[return-value]


class NoisyVotes:
    """Counts the classes that a network predicts for noisy copies of images.

    Threads wait for each other: they would share the memory that a CUDA graph reads and writes.

    Args:
        network: runs the forward passes.
        num_classes: K.
        noise: makes the noisy copies.
    """

    def __init__(self, network: RunNetwork, num_classes: int, noise: GaussianNoise) -> None:
        self.network, self.num_classes, self.noise = network, num_classes, noise
        self._lock = threading.RLock()
        self.passes = Passes()
        self._network_version = 0  # that the graphs of ``passes`` were captured with
        self._best_batch: dict[tuple[object, ...], int] = {}
        self._row_tests: dict[tuple[object, ...], tuple[RowTest, int, list[torch.Tensor]]] = {}
        self._said_nan = False
        self._rows_to_test = _TESTED_ROWS
        if noise.sound:  # each form is tested, and to the bit
            self._rows_to_test = self._rows_to_test_again()

    @_one_at_a_time
    def counts(
        self,
        x: torch.Tensor,
        num: int,
        stream: str,
        size: int,
        image_ids: torch.Tensor,
        stop: Callable[[torch.Tensor, int], bool] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """Votes of ``num`` noisy copies of each image, in forward passes of ``size`` rows.

        Args:
            x: (B, ...) images, as ``noise.images`` returns them.
            num: copies of each image.
            stream: the stream of noise, as in ``functional.noisy_repeat``.
            size: rows of a forward pass, at most.
            image_ids: (B,) int64, with the seed they determine the noise.
            stop: called with the counts and the copies so far after each pass; True ends the loop.
                For one image only.

        Returns:
            int64 (B, K) on the device of x, and the number of copies drawn of each image.

        Raises:
            TypeError, ValueError: the network returns no (N, K) logits; its rows depend on each
                other.
        """
        self.prepare(x)
        if self._network_version != self.network.version:
            self._network_version = self.network.version
            self.passes.forget()
        # A sound bound is of one function of a row, so rows are tested and passes padded to one
        # size. Selection only chooses the class and proves nothing.
        for_bound = self.noise.sound and stream != "selection"
        if for_bound:
            self.row_test(x, size)
        x = self.network.in_memory_format(x)
        counts = torch.zeros((x.shape[0], self.num_classes), dtype=torch.int64, device=x.device)
        images_per_pass = max(1, size // num)
        drawn = num
        pad = for_bound or self.network.compiled
        step = functools.partial(self._step, stream, size if pad else None)
        memory = self.network.memory()
        # The row test runs without a graph, and inside one a library may choose other code.
        graph_key = None if memory is None or for_bound else (stream, size, memory)
        enough = machine.memory_for(min(size, num * len(x)), tuple(x.shape[1:]), "--batch-size")
        with self.network.frozen_base(), enough:
            tested = min(size, num, self._rows_to_test)
            if tested > 1 and (stream != "selection" or self._rows_to_test == _TESTED_ROWS):
                self._test_alone(x[:1], tested, min(size, num), size if pad else None)
            for first in range(0, x.shape[0], images_per_pass):
                part = slice(first, first + images_per_pass)
                start = torch.zeros((), dtype=torch.int64, device=x.device)
                votes = Votes(x[part], image_ids[part], start, counts[part])
                for offset in range(0, num, size):
                    processes.heartbeat()
                    rows = min(size, num - offset)
                    self.passes.run(step, votes, rows, graph_key)
                    if stop is not None and stop(counts, offset + rows):
                        drawn = offset + rows
                        break
        if x.device.type == "cuda":
            # The lock orders only the host: another thread's stream may reuse a graph's memory.
            torch.cuda.current_stream(x.device).synchronize()
        if not self._said_nan:
            self._say_nan(len(x) * drawn - int(counts.sum()), len(x) * drawn)
        return counts, drawn

    def _say_nan(self, without_vote: int, rows: int) -> None:
        """Say once that rows had no vote: certificates hold, but abstain without visible cause."""
        if without_vote:
            self._said_nan = True
            say(
                f"warning: {without_vote:,} of {rows:,} rows had NaN logits and vote for no class: "
                f"is the range of {self.network.choices['precision']} too small for the network "
                "(--precision fp32 has the largest), or did its training diverge?"
            )

    def _test_alone(self, x: torch.Tensor, number: int, most: int, size: int | None) -> None:
        """Test that votes are independent samples, with ``number`` noisy copies of x (1, ...)."""
        bf16 = self.network.choices["precision"] == "bf16 autocast"

        def judged(number: int) -> bool:
            rows, again = self._probe_rows(x, number), self._rows_to_test == _TESTED_AGAIN
            return check_alone(lambda part: self._logits(part, size), rows, bf16, draws=not again)

        try:
            was_judged = judged(number)
        except Exception as error:
            refused = isinstance(error, InputError) and error.__cause__ is None
            if refused or number == most or is_out_of_memory(error):
                raise
            self.prepare(x)
            was_judged = judged(most)  # it takes batches of one size only
        if not was_judged:
            reason = "it draws random numbers that are not torch's"
            if "row test" not in self.network.left_out:
                say(f"whether the network's rows depend on each other was not tested: {reason}")
            self.network.left_out["row test"] = reason
        self._rows_to_test = self._rows_to_test_again()

    def _rows_to_test_again(self) -> int:
        """Rows of the test at later calls: modules inside a plain callable may be trained on."""
        return 0 if isinstance(self.network.base, nn.Module) else _TESTED_AGAIN

    def _step(self, stream: str, size: int | None, votes: Votes, rows: int) -> None:
        noisy = self._copies(votes.x, rows, votes.image_ids, votes.offset, stream)
        functional.vote(self._logits(noisy, size), votes.counts)
        votes.offset += rows

    @_one_at_a_time
    def batch_size(self, x: torch.Tensor) -> int:
        """The fastest number of rows of a forward pass, measured once per shape and device."""
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._best_batch:
            sizes = _BATCH_SIZES.get(x.device.type, _BATCH_SIZES["cuda"])
            # Each size costs a compilation, and small ones gain nothing from it.
            sizes = sizes[1:] if self.network.compiled else sizes
            pixels = x[:1].numel()
            sizes = [size for size in sizes if size * pixels <= _MAX_PIXELS] or sizes[:1]
            self._best_batch[key] = self._fastest(x, sizes)
        return self._best_batch[key]

    def _fastest(self, x: torch.Tensor, sizes: Sequence[int]) -> int:
        """The fastest of ``sizes`` (ascending) that fit in memory; if none, halves of the first."""
        rates: dict[int, float] = {}
        size = 0
        try:
            for size in sizes:
                rates[size] = self.rate(x, size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        return max(rates, key=lambda size: rates[size]) if rates else self._fastest(x, [size // 2])

    @_one_at_a_time
    def rate(self, x: torch.Tensor, size: int) -> float:
        """Rows per second of forward passes of ``size`` rows of images like x (1, ...)."""
        self.prepare(x)
        rows = self._probe_rows(x, size)

        def run() -> None:
            processes.heartbeat()
            self.network(rows)

        with self.network.frozen_base():
            return size / best_seconds(run, x.device)

    @_one_at_a_time
    def prepare(self, x: torch.Tensor) -> None:
        """Choose the network's form with the first images; later calls follow its weights."""
        rows = min(_PROBE_ROWS, max(1, _MAX_PIXELS // x[:1].numel()))
        self.network.prepare(lambda: self._probe_rows(x, rows))

    def _probe_rows(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Noisy copies for measurements: pooling takes twice as long on them as on zeros."""
        ids = torch.zeros(1, dtype=torch.int64, device=x.device)
        return self._copies(self.network.in_memory_format(x[:1]), rows, ids, 0, "prediction")

    def _copies(
        self, x: torch.Tensor, rows: int, ids: torch.Tensor, offset: int | torch.Tensor, stream: str
    ) -> torch.Tensor:
        return self.noise.copies(x, rows, ids, offset, stream, self.network.dtype)

    @_one_at_a_time
    def row_test(self, x: torch.Tensor, size: int) -> RowTest:
        """The result of ``check_rows`` for such images and this size, on the network as it runs."""
        self.prepare(x)
        key = (tuple(x.shape[1:]), x.device, size, torch.get_num_threads())
        test, version, content = self._row_tests.get(key, (None, 0, []))
        if test is None or version != self.network.version or self.network.changed(content):
            rows, content = self._probe_rows(x, rows_to_test(size)), self.network.content()
            with self.network.frozen_base():
                test = check_rows(lambda part: self._logits(part, size), rows, size)
            self._row_tests[key] = test, self.network.version, content
        return test

    def _logits(self, rows: torch.Tensor, size: int | None) -> torch.Tensor:
        """Logits of the rows, in a forward pass padded with zeros to ``size`` rows.

        Compiled code is specialised to one number of rows; and sound certificates hold for one
        function, which the network may not be when the number of rows changes.
        """
        count = rows.shape[0]
        if size is not None and count < size:
            padding = rows.new_zeros((size - count, *rows.shape[1:]))
            rows = torch.cat([rows, padding])
        logits = self.network(rows)
        # Another number of rows, of a network that averages or crops, would count samples twice or
        # for the wrong image.
        if logits.shape != (len(rows), self.num_classes):
            raise ValueError(
                f"the network must return ({len(rows)}, {self.num_classes}) logits, got shape "
                f"{tuple(logits.shape)}; check num_classes, and that each image has one row"
            )
        return logits[:count]

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, which is of this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
