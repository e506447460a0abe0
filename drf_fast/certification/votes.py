"""Votes of a network under noise: the loop that certification spends its time in.

Rows of one forward pass are noisy copies of one image, or, where an image needs few of them, of
several. Counts stay on the device, in int64, and nothing waits for it.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from drf_fast import functional
from drf_fast.certification.noise import GaussianNoise, RowTest, check_rows, rows_to_test
from drf_fast.runtime.frozen import frozen

PRECISIONS = ("fp32", "bf16")
_BATCH_SIZES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048, 4096, 8192, 16384)}
_MOST_PIXELS = 2**28  # of a forward pass that is tried, so that trying does not exhaust a GPU


class NoisyVotes:
    """Counts the classes that ``base`` predicts for noisy copies of images.

    With bf16 or ``compile`` an ``nn.Module`` is copied, as it is now: its weights are converted or
    built into the compiled code. Should they change later, ``counts`` refuses to go on.

    Args:
        base: network (N, ...) -> (N, K).
        num_classes: K.
        noise: makes the noisy copies of images.
        precision: "fp32", or "bf16": parameters, buffers and input in bfloat16 (for a callable that
            is no module, bfloat16 autocast).
        compile: run it through ``torch.compile``, every forward pass with the same number of rows.
    """

    def __init__(
        self,
        base: Callable[[torch.Tensor], torch.Tensor],
        num_classes: int,
        noise: GaussianNoise,
        *,
        precision: str,
        compile: bool,
    ) -> None:
        self.base, self.num_classes, self.noise = base, num_classes, noise
        self._autocast = self._half = False
        self._network = base
        self._versions: list[int] | None = None
        self._compiled = compile
        if precision == "bf16":
            self._half = isinstance(base, nn.Module)
            self._autocast = not self._half
        if isinstance(base, nn.Module) and (compile or self._half):
            self._versions = _versions(base)
            self._network = _snapshot(base, self._half)
        if compile:
            self._network = torch.compile(
                self._network, dynamic=False, options={"freezing": isinstance(base, nn.Module)}
            )
        self._channels_last = isinstance(base, nn.Module) and _is_channels_last(base)
        self._best_batch: dict[tuple[object, ...], int] = {}
        self._row_tests: dict[tuple[object, ...], RowTest] = {}

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
            x: (B, ...) images.
            num: copies of each image.
            stream: which noise, as in ``functional.noisy_repeat``.
            size: rows of a forward pass, at most.
            image_ids: (B,) names of the images' noise.
            stop: called with the counts and the copies so far after each pass; True ends the loop.
                For one image only.

        Returns:
            int64 (B, K) on the device of x, and the copies that were drawn of each image.

        Raises:
            TypeError, ValueError: the network returns no (N, K) logits, or was changed after it
                was copied.
        """
        self._refuse_changes()
        if self.noise.sound:
            self.row_test(x, size)
        x = self._laid_out(x)
        counts = torch.zeros((x.shape[0], self.num_classes), dtype=torch.int64, device=x.device)
        together = max(1, size // num)  # images of a forward pass
        drawn = num
        with frozen(self.base):
            for first in range(0, x.shape[0], together):
                part = slice(first, first + together)
                for offset in range(0, num, size):
                    rows = min(size, num - offset)
                    noisy = self.noise.copies(x[part], rows, image_ids[part], offset, stream)
                    functional.vote(self._logits(noisy, size), counts[part])
                    if stop is not None and stop(counts, offset + rows):
                        drawn = offset + rows
                        break
        return counts, drawn

    def batch_size(self, x: torch.Tensor) -> int:
        """The rows of a forward pass with the highest rate, measured once for a kind of input."""
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._best_batch:
            sizes = _BATCH_SIZES.get(x.device.type, _BATCH_SIZES["cuda"])
            # Each is a compilation, and small ones gain nothing from it.
            sizes = sizes[1:] if self._compiled else sizes
            pixels = x[:1].numel()
            sizes = [size for size in sizes if size * pixels <= _MOST_PIXELS] or sizes[:1]
            self._best_batch[key] = max(sizes, key=lambda size: self.rate(x, size))
        return self._best_batch[key]

    def rate(self, x: torch.Tensor, size: int) -> float:
        """Rows per second of forward passes of ``size`` rows of images like x (1, ...)."""
        # Noisy images: pooling takes twice as long on them as on zeros.
        rows = self._copies_of_first(x, size)
        best = float("inf")
        with frozen(self.base):
            for repeat in range(4):
                start = time.perf_counter()
                self._run(rows)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                if repeat:  # the first one warms up
                    best = min(best, time.perf_counter() - start)
        return size / best

    def _copies_of_first(self, x: torch.Tensor, num: int) -> torch.Tensor:
        ids = torch.zeros(1, dtype=torch.int64, device=x.device)
        return self.noise.copies(self._laid_out(x[:1]), num, ids, 0, "prediction")

    def row_test(self, x: torch.Tensor, size: int) -> RowTest:
        """``check_rows`` with copies of the first image of x, done once for a kind of input."""
        key = (tuple(x.shape[1:]), x.dtype, x.device, size)
        if key not in self._row_tests:
            rows = self._copies_of_first(x, rows_to_test(size))
            with frozen(self.base):
                self._row_tests[key] = check_rows(lambda part: self._logits(part, size), rows, size)
        return self._row_tests[key]

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """Images in the network's memory format, which their noisy copies keep."""
        if self._channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _logits(self, rows: torch.Tensor, size: int) -> torch.Tensor:
        """Logits of the rows; compiled code gets ``size`` of them, whatever the caller has.

        So does the network of sound certificates, of which the function may depend on the size.
        """
        count = rows.shape[0]
        if (self._compiled or self.noise.sound) and count < size:
            filling = rows.new_zeros((size - count, *rows.shape[1:]))
            logits = self._run(torch.cat([rows, filling]))
        else:
            logits = self._run(rows)
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network must return ({count}, {self.num_classes}) logits, got shape "
                f"{tuple(logits.shape)}; check num_classes"
            )
        return logits[:count]

    def _run(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self._precision(rows.device.type):
            logits = self._network(rows.bfloat16() if self._half else rows)
        if not isinstance(logits, torch.Tensor):
            raise TypeError(
                f"the network must return a tensor of logits, got {type(logits).__name__}"
            )
        return logits

    def _precision(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        if self._autocast:
            return torch.autocast(device_type, torch.bfloat16)
        return contextlib.nullcontext()

    def _refuse_changes(self) -> None:
        if self._versions is not None and self._versions != _versions(self.base):
            raise ValueError(
                "the network was copied when this SmoothedClassifier was made (precision='bf16' or "
                "compile=True) and has changed since; make a new SmoothedClassifier of it"
            )


def _versions(module: Any) -> list[int]:
    """Counts of the in-place changes of all tensors, and which tensors they are."""
    tensors = [*module.parameters(), *module.buffers()]
    return [number for tensor in tensors for number in (id(tensor), tensor._version)]


def _snapshot(base: nn.Module, half: bool) -> nn.Module:
    network = copy.deepcopy(base).eval().requires_grad_(False)
    return network.to(torch.bfloat16) if half else network


def _is_channels_last(base: nn.Module) -> bool:
    """Whether the network's convolutions were laid out for channels_last images."""
    return any(
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in base.parameters()
    )
