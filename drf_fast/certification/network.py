"""The network as certification runs it: a copy in the fastest form that works.

A *form* is a memory format, precision and compilation, with batch normalisation and pooling fused.
Forms are tried on a copy with the first images; one in which the network fails is reported, left
out and recorded. The user's module is never changed; it is run itself where the form needs no copy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from drf_fast.certification.inputs import how_to_pass
from drf_fast.config.choices import Arithmetic
from drf_fast.errors import InputError
from drf_fast.models import fusing
from drf_fast.runtime import tf32
from drf_fast.runtime.fastest import best_seconds, fastest
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_agree, logits_of
from drf_fast.runtime.machine import MEMORY_FORMATS
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.modules import dtype_of, has_convolutions, is_channels_last
from drf_fast.runtime.progress import say
from drf_fast.runtime.tensors import same_bits
from drf_fast.runtime.text import one_line

PRECISIONS = (*get_args(Arithmetic), "bf16 autocast", "auto", "fastest")
_PASSES = 4  # timed forward passes per form


def as_requested(recorded: Any) -> Any:
    """The precision to ask for so that it becomes the ``recorded`` one: autocast is found by bf16.

    A log records "bf16 autocast" for a network whose weights cannot be converted.
    """
    return "bf16" if recorded == "bf16 autocast" else recorded


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Attributes:
        memory_format: "contiguous" or "channels_last".
        precision: "fp32": the dtype of its parameters; "tf32": the same, with products of float32
            on a GPU in TF32; "bf16": parameters, buffers and input in bfloat16; "bf16 autocast":
            for networks without parameters, or that fail when converted.
        compile: with ``torch.compile``, every forward pass with the same number of rows.
    """

    memory_format: str
    precision: str
    compile: bool


class RunNetwork:
    """Maps rows to logits: ``base`` in eval mode, in a form that is chosen with the first rows.

    Parameters and buffers of ``base`` may change between calls of ``prepare``, which compares their
    content and renews the copy; code and other attributes may not.

    Args:
        base: network (N, ...) -> (N, K).
        precision: one of ``PRECISIONS``; "auto" takes the faster of fp32 and, on devices that have
            it, tf32; "fastest" tries bf16 too.
        compile: whether to compile it.
        memory_format: "contiguous", "channels_last", or None: the faster one, measured.
    """

    def __init__(
        self,
        base: Callable[[torch.Tensor], Any],
        *,
        precision: str,
        compile: bool,
        memory_format: str | None,
    ) -> None:
        self.base = base
        self.requested = (precision, compile, memory_format)
        self.form: Form | None = None
        self.left_out: dict[str, str] = {}
        self._unsaid: list[str] = []  # messages of forms that failed, until another one works
        self.version = 0  # grows whenever the network that runs is built anew
        self._network: Any = None
        self._probe: torch.Tensor | None = None  # rows with which a fused copy is verified
        self._copied_from: list[torch.Tensor] | None = None
        self._has_run = False

    @property
    def choices(self) -> dict[str, Any]:
        """precision, compile and memory_format as chosen, or as requested before a choice."""
        precision, compiled, layout = self.requested
        if self.form is not None:
            precision, compiled = self.form.precision, self.form.compile
            layout = self.form.memory_format
        return {"precision": precision, "compile": compiled, "memory_format": layout}

    def repeat(self, recorded: Mapping[str, Any]) -> None:
        """Request what was chosen in an earlier run where a choice is to be measured."""
        precision, compiled, layout = self.requested
        if self.form is None and precision in ("auto", "fastest"):
            precision = recorded.get("precision", precision)
        if self.form is None and layout is None:
            layout = recorded.get("memory_format")
        if precision in PRECISIONS and layout in (None, *MEMORY_FORMATS):
            self.requested = precision, compiled, layout

    @property
    def compiled(self) -> bool:
        """Whether every forward pass should have the same number of rows."""
        requested = self.requested[1] if self.form is None else self.form.compile
        return requested or _is_compiled(self.base)

    def prepare(self, rows: Callable[[], torch.Tensor]) -> None:
        """Choose the form with noisy rows, once; afterwards follow changes of ``base``."""
        if self.form is None:
            self._choose(rows())
        elif self._network is None or (
            self._copied_from is not None and self.changed(self._copied_from)
        ):
            self._network = None  # frees the memory of the old copy
            self.version += 1
            self._network, self._copied_from = self._build(self.form)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's input; float32 before its form is chosen."""
        if self.form is not None and self.form.precision == "bf16":
            return torch.bfloat16
        return _dtype(self.base, torch.float32)

    def in_memory_format(self, x: torch.Tensor) -> torch.Tensor:
        """x in the network's memory format, which its noisy copies keep."""
        if self.form is not None and self.form.memory_format == "channels_last" and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The logits of the rows, without gradients.

        Raises:
            InputError: the first pass failed, as it does for images of another shape.
        """
        assert self.form is not None
        try:
            logits = self._run(self._network, self.form, rows)
        except Exception as error:  # whatever a network of the user's own raises
            explained = isinstance(error, (InputError, TypeError))  # such as what it returns
            if self._has_run or explained or is_out_of_memory(error):
                raise
            self.form = None  # is chosen again, with the next images
            self.left_out.clear()
            self._unsaid.clear()
            elsewhere = {tensor.device for tensor in _tensors(self.base)} - {rows.device}
            if elsewhere:
                raise InputError(
                    f"the network lies on {', '.join(map(str, elsewhere))}, got images on "
                    f"{rows.device}; move one of them, x.to(...) for example"
                ) from error
            raise InputError(
                f"the network must take images of shape {tuple(rows.shape[1:])}, got "
                f"{one_line(error)}; {how_to_pass(rows)}"
            ) from error
        self._has_run = True
        self._say_left_out()
        return logits

    def memory(self) -> tuple[Any, ...] | None:
        """Where the network's parameters and buffers lie; None if no CUDA graph may hold it.

        Compiled code makes graphs of its own, and a plain callable may change from call to call.
        """
        if self.compiled or not isinstance(self._network, nn.Module):
            return None
        # Not the address alone: another dtype or transposed weights may have the same.
        return tuple(
            (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            for tensor in _tensors(self._network)
        )

    def content(self) -> list[torch.Tensor]:
        """Copies of the parameters and buffers of ``base``; empty for a plain callable."""
        return [tensor.detach().clone() for tensor in _tensors(self.base)]

    def changed(self, content: list[torch.Tensor]) -> bool:
        """Whether parameters or buffers of ``base`` differ in a bit from ``content``."""
        now = _tensors(self.base)
        return len(now) != len(content) or not same_bits(now, content)

    @contextlib.contextmanager
    def frozen_base(self) -> Iterator[None]:
        """``base`` in eval mode and frozen, if it is run itself and not as a copy."""
        with frozen(self.base) if self._copied_from is None else contextlib.nullcontext():
            yield

    # ---- the choice

    def _choose(self, rows: torch.Tensor) -> None:
        self._probe = rows[:4].clone() if isinstance(self.base, nn.Module) else None
        groups = self._forms(rows)
        only_form = sum(map(len, groups)) == 1

        def attempt(form: Form) -> tuple[float, tuple[Any, list[torch.Tensor] | None]]:
            network, copied_from = self._build(form)
            if only_form and copied_from is None:  # nothing to choose from
                return 0.0, (network, copied_from)
            return self._seconds(network, form, copied_from, rows), (network, copied_from)

        found = fastest(groups, attempt)
        for form, error in found.failures.items():
            self._leave_out(form, error)
        if found.form is None:  # the unchanged network, whose own error the user then sees
            form, made = Form("contiguous", "fp32", False), self._build(None)
        else:
            self._say_left_out()
            form, made = found.form, found.made
        self.form, (self._network, self._copied_from) = form, made
        if self.requested[1] and not form.compile:
            self._compile(rows)

    def _forms(self, rows: torch.Tensor) -> list[list[Form]]:
        """Groups of forms: the fastest of the first group in which one works is chosen."""
        layouts = list(MEMORY_FORMATS)
        if self.requested[2] is not None:
            layouts = [self.requested[2]]
        elif rows.dim() != 4 or not _has_convolutions(self.base):
            layouts = ["contiguous"]
        return [
            [Form(layout, precision, False) for precision in group for layout in layouts]
            for group in _precision_groups(self.base, self.requested[0], rows.device)
        ]

    def _compile(self, rows: torch.Tensor) -> None:
        assert self.form is not None
        form = Form(self.form.memory_format, self.form.precision, True)
        try:
            network, copied_from = self._build(form)
            self._seconds(network, form, copied_from, rows, passes=1)
        except Exception as error:
            self._leave_out(form, error)
            return
        self.form, self._network, self._copied_from = form, network, copied_from

    def _leave_out(self, form: Form, error: Exception) -> None:
        name = "compile" if form.compile else f"{form.memory_format} {form.precision}"
        reason = self.left_out[name] = one_line(error)
        self._unsaid.append(
            f"the network cannot be run as {name} and is certified without it ({reason})"
        )

    def _say_left_out(self) -> None:
        for message in self._unsaid:
            say(message)
        self._unsaid.clear()

    def _seconds(self, network, form, copied_from, rows, passes: int = _PASSES) -> float:
        """Seconds of a forward pass, at best."""
        if form.memory_format == "channels_last" and rows.dim() == 4:
            rows = rows.contiguous(memory_format=torch.channels_last)
        with frozen(self.base) if copied_from is None else contextlib.nullcontext():
            return best_seconds(lambda: self._run(network, form, rows), rows.device, passes)

    # ---- a form

    def _build(self, form: Form | None) -> tuple[Any, list[torch.Tensor] | None]:
        """The network in this form and, if it is a copy, the tensors that were copied."""
        base = self.base
        unchanged = form is None or (
            form.precision != "bf16"
            and not form.compile
            and not self._changes_layout(form)
            and not self._fusible()
        )
        if unchanged or not isinstance(base, nn.Module):
            compiled = form is not None and form.compile
            return (torch.compile(base, dynamic=False) if compiled else base), None
        assert form is not None
        copied_from = self.content()
        network = copy.deepcopy(getattr(base, "_orig_mod", base)).eval()
        for parameter in network.parameters():  # scripted modules have no requires_grad_
            parameter.requires_grad_(False)
        network = self._fused(network) or network
        if form.precision == "bf16":
            network = network.to(torch.bfloat16)
        network = network.to(memory_format=MEMORY_FORMATS[form.memory_format])  # type: ignore[call-overload]
        if form.compile:
            network = torch.compile(network, dynamic=False, options={"freezing": True})
        return network, copied_from

    def _fusible(self) -> bool:
        """Whether the network has something to fuse."""
        if not isinstance(self.base, nn.Module):
            return False
        with contextlib.suppress(Exception):  # a network that cannot be copied is run itself
            network = copy.deepcopy(getattr(self.base, "_orig_mod", self.base))
            return self._fused(network.eval()) is not None
        return False

    def _fused(self, network: nn.Module) -> _Fused | None:
        """The network with a fused forward pass; None if nothing is fused or results differ."""
        if self._probe is None:
            return None
        probe = self._probe.to(_dtype(network, self._probe.dtype))
        exact = tf32.switched(probe.device, False)  # else rounding would look like a difference
        with torch.no_grad(), torch.random.fork_rng(devices=[]), exact:
            try:
                expected = logits_of(network(probe.clone()))  # it may normalise in place
                network = copy.deepcopy(network)  # folding changes its weights
                fused = _Fused(network, fusing.rewritten(network, fold=True))
                got = logits_of(fused(probe))
            except Exception:  # not fused; an error of the network itself shows when it runs
                return None
        return fused if logits_agree(got, expected) else None

    def _changes_layout(self, form: Form) -> bool:
        """Whether the memory format of this form differs from that of ``base``."""
        last = isinstance(self.base, nn.Module) and is_channels_last(self.base)
        return (form.memory_format == "channels_last") != last

    def _run(self, network: Any, form: Form, rows: torch.Tensor) -> torch.Tensor:
        if form.precision == "bf16":
            rows = rows.bfloat16()
        else:
            rows = rows.to(_dtype(self.base, rows.dtype))
        autocast = form.precision == "bf16 autocast"
        context = torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast)
        with torch.no_grad(), context, tf32.switched(rows.device, form.precision == "tf32"):
            return logits_of(network(rows))

    def __getstate__(self) -> dict[str, Any]:
        """Without the network in its form, which is rebuilt: compiled code cannot be pickled."""
        return {**self.__dict__, "_network": None, "_copied_from": None}


class _Fused(nn.Module):
    """A copy of the network with its fused forward pass."""

    def __init__(self, network: nn.Module, forward: fusing.Forward) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self.network, x)


def _precision_groups(base: Any, requested: str, device: torch.device) -> list[tuple[str, ...]]:
    """Groups of precisions: the fastest of the first group in which one works is chosen."""
    has_tf32 = _dtype(base, torch.float32) == torch.float32 and tf32.why_not(device) is None
    single = ("fp32", "tf32") if has_tf32 else ("fp32",)
    half = "bf16" if isinstance(base, nn.Module) else "bf16 autocast"
    if requested in ("fp32", "auto", "fastest"):
        return [{"fp32": ("fp32",), "auto": single, "fastest": (*single, half)}[requested]]
    bf16 = (half,), ("bf16 autocast",)
    return list(dict.fromkeys([*(bf16 if requested == "bf16" else [(requested,)]), ("fp32",)]))


def _tensors(base: Any) -> list[torch.Tensor]:
    return [*base.parameters(), *base.buffers()] if isinstance(base, nn.Module) else []


def _dtype(base: Any, default: torch.dtype) -> torch.dtype:
    """The dtype of the network's parameters, to which its input is converted."""
    if not isinstance(base, nn.Module):
        return default
    return dtype_of(base, default)


def _has_convolutions(base: Any) -> bool:
    """Whether the memory format can matter: some weight is that of a 2-D convolution."""
    return isinstance(base, nn.Module) and has_convolutions(base)


def _is_compiled(base: Any) -> bool:
    return hasattr(base, "_orig_mod")
