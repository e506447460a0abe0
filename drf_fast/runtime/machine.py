"""The machine of a run: device, measured memory format, threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from drf_fast.errors import InputError, RunError
from drf_fast.runtime.fastest import best_seconds, fastest
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.modules import dtype_of
from drf_fast.runtime.progress import say
from drf_fast.runtime.text import one_line

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Flags of ``train`` that lower the memory of a step.
TRAINING_REMEDY = "--batch-size or --num-samples, or raise --accumulate"


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
        InputError: "cuda" was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda needs an NVIDIA GPU and a CUDA build of torch, got neither working; "
            "use --device cpu, and see 'drf-fast doctor'"
        )
    return torch.device(name)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of the CPU ``tensor`` on the device, without waiting for work queued on a GPU.

    From pageable memory torch copies synchronously; from pinned memory it queues the copy.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast for "bf16", nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Placed(NamedTuple):
    """A network on its device, in the fastest memory format.

    Attributes:
        network: the network to be run.
        memory_format: name of its memory format, to be recorded with the run.
        left_out: memory formats that failed, by name, and the error; to be recorded, too.
    """

    network: nn.Module
    memory_format: str
    left_out: dict[str, str]


def place(
    model: nn.Module,
    device: torch.device,
    memory_format: str,
    precision: str,
    image_shape: tuple[int, ...],
    rows: int = 256,
) -> Placed:
    """Move ``model`` to the device in the memory format named, or in the faster one for "auto".

    A format in which the network fails is reported and left out.

    Raises:
        InputError: it fails in all of them.
        RunError: out of memory for ``rows`` rows.
    """
    model = model.to(device)
    names = list(MEMORY_FORMATS) if memory_format == "auto" else [memory_format]

    def attempt(name: str) -> tuple[float, None]:
        laid_out = model.to(memory_format=MEMORY_FORMATS[name])  # type: ignore[call-overload]
        return _seconds(laid_out, device, precision, image_shape, rows), None

    found = fastest([names], attempt)
    for error in found.failures.values():
        if is_out_of_memory(error):
            raise lack_of_memory(error, rows, image_shape) from error
    failures = {name: one_line(error) for name, error in found.failures.items()}
    if found.form is None:
        raise InputError(
            f"the network must take a forward and a backward pass of images {(rows, *image_shape)} "
            f"in {precision}, memory format {' or '.join(names)}, got {failures[names[0]]}; "
            "correct it, or choose another --memory-format or --precision"
        )
    for name, reason in failures.items():
        say(f"the network cannot take {name} images and is run without them ({reason})")
    network = model.to(memory_format=MEMORY_FORMATS[found.form])
    return Placed(network, found.form, failures)


@contextlib.contextmanager
def memory_for(rows: int, image_shape: tuple[int, ...], remedy: str) -> Iterator[None]:
    """Report lack of memory inside the block, for passes of ``rows`` rows, in one sentence.

    Raises:
        RunError: out of memory.
    """
    try:
        yield
    except RunError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"expected memory for a pass of {rows:,} rows {image_shape} through the network, got "
            f"{one_line(error, 160)}; lower {remedy}"
        ) from error


def lack_of_memory(
    error: BaseException, rows: int, image_shape: tuple[int, ...], remedy: str = TRAINING_REMEDY
) -> RunError:
    """The error to raise where a forward and a backward pass of ``rows`` rows ran out of memory."""
    return RunError(
        f"expected memory for a forward and a backward pass of {rows:,} rows {image_shape} (a "
        f"batch times --num-samples), got {one_line(error, 160)}; lower {remedy}"
    )


def _seconds(model, device, precision, image_shape, rows) -> float:
    """Seconds of a forward and backward pass to the images, as an adversary needs; the best."""
    x = torch.zeros((rows, *image_shape), device=device)
    with autocast(device, precision):
        return seconds(model, x)


def seconds(model: nn.Module, example: torch.Tensor) -> float:
    """Seconds of a forward pass of images like ``example`` and a backward pass to them, at best."""
    # Noise as in training: pooling takes twice as long on it as on zeros.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(example.shape, generator=generator, device="cpu")
    # Images of the network's dtype: it may be in double precision.
    x = noise.to(example.device, dtype_of(model, noise.dtype)).requires_grad_()
    with frozen(model):
        return best_seconds(lambda: _pass(model, x), x.device, passes=3)


def _pass(model: nn.Module, x: torch.Tensor) -> None:
    total = logits_of(model(x)).sum()
    if total.requires_grad:  # not if only layers behind a part under no_grad are trained
        torch.autograd.grad(total, x)


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """Restore the number of CPU threads after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


def set_threads(number: int) -> None:
    """Compute with ``number`` CPU threads."""
    if number != torch.get_num_threads():
        torch.set_num_threads(number)
