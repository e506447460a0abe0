"""Votes of a network under noise: the loop that certification spends its time in.

Rows of one forward pass are noisy copies of one image, or, where an image needs few of them, of
several. Counts stay on the device, in int64, and nothing waits for it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch

from drf_fast import functional
from drf_fast.certification.network import RunNetwork
from drf_fast.certification.noise import GaussianNoise, RowTest, check_rows, rows_to_test
from drf_fast.certification.passes import Passes, Votes
from drf_fast.runtime import processes
from drf_fast.runtime.memory import is_out_of_memory

_BATCH_SIZES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048, 4096, 8192, 16384)}
_TRIED_ROWS = 128  # of a forward pass with which the network's form is chosen
_MOST_PIXELS = 2**28  # of a forward pass that is tried, so that trying does not exhaust a GPU


class NoisyVotes:
    """Counts the classes that a network predicts for noisy copies of images.

    Args:
        network: the network as it is run.
        num_classes: K.
        noise: makes the noisy copies.
    """

    def __init__(self, network: RunNetwork, num_classes: int, noise: GaussianNoise) -> None:
        self.network, self.num_classes, self.noise = network, num_classes, noise
        self.passes = Passes()
        self._made = 0  # of the network, when the graphs of ``passes`` were captured
        self._best_batch: dict[tuple[object, ...], int] = {}
        self._row_tests: dict[tuple[object, ...], tuple[RowTest, list[torch.Tensor]]] = {}

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
            x: (B, ...) images, of ``noise.images``.
            num: copies of each image.
            stream: which noise, as in ``functional.noisy_repeat``.
            size: rows of a forward pass, at most.
            image_ids: (B,) names of the images' noise.
            stop: called with the counts and the copies so far after each pass; True ends the loop.
                For one image only.

        Returns:
            int64 (B, K) on the device of x, and the copies that were drawn of each image.

        Raises:
            TypeError, ValueError: the network returns no (N, K) logits; the noise is sound and the
                network's rows depend on each other.
        """
        self.prepare(x)
        if self._made != self.network.made:
            self._made = self.network.made
            self.passes.forget()
        # What is proved is proved of one function of a row. Selection proves nothing: it chooses
        # the class of which something is to be proved.
        proves = self.noise.sound and stream != "selection"
        if proves:
            self.row_test(x, size)
        x = self.network.laid_out(x)
        counts = torch.zeros((x.shape[0], self.num_classes), dtype=torch.int64, device=x.device)
        together = max(1, size // num)  # images of a forward pass
        drawn = num
        fill = proves or self.network.compiled
        step = functools.partial(self._step, stream, size if fill else None)
        memory = self.network.memory()
        # Rows are tested without a graph, in which a library may choose other code.
        kind = None if memory is None or proves else (stream, size, memory)
        with self.network.borrowed():
            for first in range(0, x.shape[0], together):
                part = slice(first, first + together)
                start = torch.zeros((), dtype=torch.int64, device=x.device)
                votes = Votes(x[part], image_ids[part], start, counts[part])
                for offset in range(0, num, size):
                    processes.beat()
                    rows = min(size, num - offset)
                    self.passes.run(step, votes, rows, kind)
                    if stop is not None and stop(counts, offset + rows):
                        drawn = offset + rows
                        break
        return counts, drawn

    def _step(self, stream: str, size: int | None, votes: Votes, rows: int) -> None:
        noisy = self._copies(votes.x, rows, votes.image_ids, votes.offset, stream)
        functional.vote(self._logits(noisy, size), votes.counts)
        votes.offset += rows

    def batch_size(self, x: torch.Tensor) -> int:
        """The rows of a forward pass with the highest rate, measured once for a kind of input."""
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._best_batch:
            sizes = _BATCH_SIZES.get(x.device.type, _BATCH_SIZES["cuda"])
            # Each is a compilation, and small ones gain nothing from it.
            sizes = sizes[1:] if self.network.compiled else sizes
            pixels = x[:1].numel()
            sizes = [size for size in sizes if size * pixels <= _MOST_PIXELS] or sizes[:1]
            self._best_batch[key] = self._fastest(x, sizes)
        return self._best_batch[key]

    def _fastest(self, x: torch.Tensor, sizes: Sequence[int]) -> int:
        """Of ``sizes``, ascending, the fastest memory holds; the first is halved if need be."""
        rates: dict[int, float] = {}
        size = 0
        try:
            for size in sizes:
                rates[size] = self.rate(x, size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        return max(rates, key=lambda size: rates[size]) if rates else self._fastest(x, [size // 2])

    def rate(self, x: torch.Tensor, size: int) -> float:
        """Rows per second of forward passes of ``size`` rows of images like x (1, ...)."""
        self.prepare(x)
        rows = self._like(x, size)
        best = float("inf")
        with self.network.borrowed():
            for repeat in range(4):
                start = time.perf_counter()
                self.network(rows)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                if repeat:  # the first one warms up
                    best = min(best, time.perf_counter() - start)
        return size / best

    def prepare(self, x: torch.Tensor) -> None:
        """The network's form is chosen with the first images, and follows its weights."""
        rows = min(_TRIED_ROWS, max(1, _MOST_PIXELS // x[:1].numel()))
        self.network.prepare(lambda: self._like(x, rows))

    def _like(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Noisy copies to measure with: pooling takes twice as long on them as on zeros."""
        ids = torch.zeros(1, dtype=torch.int64, device=x.device)
        return self._copies(self.network.laid_out(x[:1]), rows, ids, 0, "prediction")

    def _copies(
        self, x: torch.Tensor, rows: int, ids: torch.Tensor, offset: int | torch.Tensor, stream: str
    ) -> torch.Tensor:
        return self.noise.copies(x, rows, ids, offset, stream, self.network.dtype)

    def row_test(self, x: torch.Tensor, size: int) -> RowTest:
        """``check_rows`` of the network as it runs, once for a kind of input and its weights."""
        self.prepare(x)
        key = (tuple(x.shape[1:]), x.device, size)
        test, content = self._row_tests.get(key, (None, []))
        if test is None or self.network.changed(content):
            rows, content = self._like(x, rows_to_test(size)), self.network.content()
            with self.network.borrowed():
                test = check_rows(lambda part: self._logits(part, size), rows, size)
            self._row_tests[key] = test, content
        return test

    def _logits(self, rows: torch.Tensor, size: int | None) -> torch.Tensor:
        """Logits of the rows, filled up with zeros to a forward pass of ``size``.

        Compiled code is for one number of rows, and with another number the network of sound
        certificates may be another function.
        """
        count = rows.shape[0]
        if size is not None and count < size:
            filling = rows.new_zeros((size - count, *rows.shape[1:]))
            rows = torch.cat([rows, filling])
        logits = self.network(rows)
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network must return ({count}, {self.num_classes}) logits, got shape "
                f"{tuple(logits.shape)}; check num_classes"
            )
        return logits[:count]
