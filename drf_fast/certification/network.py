"""The network as certification runs it: a copy in the fastest form that it takes.

Memory format, folded batch normalisation and pooling, precision and compilation are a *form*. Each
is tried on the first images, on a copy; one that the network cannot take is left out, said in one
sentence and recorded. The user's module is run itself where no form has to change it, and is never
changed.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drf_fast.models import fusing
from drf_fast.models.faster import same
from drf_fast.runtime import tf32
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_of, told
from drf_fast.runtime.machine import MEMORY_FORMATS
from drf_fast.runtime.progress import say

PRECISIONS = ("fp32", "tf32", "bf16", "bf16 autocast", "auto", "fastest")
_REPEATS = 3  # timed forward passes of a form


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Attributes:
        memory_format: "contiguous" or "channels_last".
        precision: "fp32": as its parameters are; "tf32": so, but products of float32 on a GPU in
            TF32; "bf16": parameters, buffers and input in bfloat16; "bf16 autocast": for what has
            no parameters to convert, or cannot be converted.
        compile: through ``torch.compile``, every forward pass with the same number of rows.
    """

    memory_format: str
    precision: str
    compile: bool


class RunNetwork:
    """Rows in, logits out: ``base`` in eval mode, in the form chosen at the first rows.

    Parameters and buffers of ``base`` may change between calls of ``prepare``, which compares their
    content and makes the copy anew; code and other attributes may not.

    Args:
        base: network (N, ...) -> (N, K).
        precision: one of ``PRECISIONS``; of "auto" (fp32, and tf32 where there is one) and
            "fastest" (bf16 too) the fastest is measured.
        compile: whether to compile it.
        memory_format: "contiguous", "channels_last", or None: the faster one is measured.
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
        self.wanted = (precision, compile, memory_format)
        self.form: Form | None = None
        self.left_out: dict[str, str] = {}
        self.made = 0  # how often what runs was made anew
        self._network: Any = None
        self._probe: torch.Tensor | None = None  # rows with which a fused copy is verified
        self._kept: list[torch.Tensor] | None = None

    @property
    def choices(self) -> dict[str, Any]:
        """precision, compile and memory_format as chosen, or as asked for before any choice."""
        precision, compiled, layout = self.wanted
        if self.form is not None:
            precision, compiled = self.form.precision, self.form.compile
            layout = self.form.memory_format
        return {"precision": precision, "compile": compiled, "memory_format": layout}

    @property
    def compiled(self) -> bool:
        """Whether every forward pass should have the same number of rows."""
        wanted = self.wanted[1] if self.form is None else self.form.compile
        return wanted or _is_compiled(self.base)

    def prepare(self, rows: Callable[[], torch.Tensor]) -> None:
        """Choose the form with noisy rows, once; afterwards follow changes of ``base``."""
        if self.form is None:
            self._choose(rows())
        elif self._network is None or (self._kept is not None and self.changed(self._kept)):
            self._network = None  # the old copy's memory
            self.made += 1
            self._network, self._kept = self._made(self.form)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that the network takes; float32 before its form is chosen."""
        if self.form is not None and self.form.precision == "bf16":
            return torch.bfloat16
        return _dtype(self.base, torch.float32)

    def laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """Images in the network's memory format, which their noisy copies keep."""
        if self.form is not None and self.form.memory_format == "channels_last" and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Whatever the network returns for the rows, as logits, without gradients."""
        assert self.form is not None
        return self._run(self._network, self.form, rows)

    def memory(self) -> tuple[int, ...] | None:
        """Where the numbers of the network that runs lie; None where no CUDA graph may replay it.

        Compiled code makes graphs of its own, and a mere callable may be another at each call.
        """
        if self.compiled or not isinstance(self._network, nn.Module):
            return None
        return tuple(tensor.data_ptr() for tensor in _tensors(self._network))

    def content(self) -> list[torch.Tensor]:
        """Copies of the parameters and buffers of ``base``, none of a mere callable."""
        return [tensor.detach().clone() for tensor in _tensors(self.base)]

    def changed(self, content: list[torch.Tensor]) -> bool:
        """Whether ``base`` holds other bits than it did when this was its ``content``."""
        now = _tensors(self.base)
        return len(now) != len(content) or not all(map(_same_bits, now, content))

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """``base`` in eval mode, where it is run itself."""
        with frozen(self.base) if self._kept is None else contextlib.nullcontext():
            yield

    # ---- the choice

    def _choose(self, rows: torch.Tensor) -> None:
        self._probe = rows[:4].clone() if isinstance(self.base, nn.Module) else None
        forms = self._forms(rows)
        best: tuple[float, Form, Any, list[torch.Tensor] | None] | None = None
        for together in _precisions(self.base, self.wanted[0], rows.device):
            for form in [form for form in forms if form.precision in together]:
                made = self._tried(form, rows, alone=len(forms) == 1)
                if made is not None and (best is None or made[0] < best[0]):
                    best = made
            if best is not None:
                break
        if best is None:  # whatever is wrong, the network as it is says it
            best = (0.0, Form("contiguous", "fp32", False), *self._made(None))
        _, self.form, self._network, self._kept = best
        if self.wanted[1] and not self.form.compile:
            self._compile(rows)

    def _forms(self, rows: torch.Tensor) -> list[Form]:
        layouts = list(MEMORY_FORMATS)
        if self.wanted[2] is not None:
            layouts = [self.wanted[2]]
        elif rows.dim() != 4 or not _has_images_inside(self.base):
            layouts = ["contiguous"]
        return [
            Form(layout, precision, False)
            for together in _precisions(self.base, self.wanted[0], rows.device)
            for precision in together
            for layout in layouts
        ]

    def _tried(
        self, form: Form, rows: torch.Tensor, alone: bool
    ) -> tuple[float, Form, Any, list[torch.Tensor] | None] | None:
        """The form with its time, or None, and said, where the network cannot take it."""
        try:
            network, kept = self._made(form)
            if alone and kept is None:  # nothing to choose from
                return 0.0, form, network, kept
            seconds = self._seconds(network, form, kept, rows)
            return seconds, form, network, kept
        except Exception as error:  # whatever a network of the user's own does
            self._leave_out(form, error)
            return None

    def _compile(self, rows: torch.Tensor) -> None:
        assert self.form is not None
        form = Form(self.form.memory_format, self.form.precision, True)
        try:
            network, kept = self._made(form)
            self._seconds(network, form, kept, rows, repeats=0)
        except Exception as error:
            self._leave_out(form, error)
            return
        self.form, self._network, self._kept = form, network, kept

    def _leave_out(self, form: Form, error: Exception) -> None:
        name = "compile" if form.compile else f"{form.memory_format} {form.precision}"
        self.left_out[name] = told(error)
        say(f"the network cannot be run as {name} and is certified without it ({told(error)})")

    def _seconds(self, network, form, kept, rows, repeats: int = _REPEATS) -> float:
        """The best time of a forward pass, the first one left out."""
        if form.memory_format == "channels_last" and rows.dim() == 4:
            rows = rows.contiguous(memory_format=torch.channels_last)
        best = float("inf")
        with frozen(self.base) if kept is None else contextlib.nullcontext():
            for repeat in range(repeats + 1):
                start = time.perf_counter()
                self._run(network, form, rows)
                if rows.device.type == "cuda":
                    torch.cuda.synchronize(rows.device)
                if repeat:
                    best = min(best, time.perf_counter() - start)
        return best

    # ---- a form

    def _made(self, form: Form | None) -> tuple[Any, list[torch.Tensor] | None]:
        """The network in this form; and, if it is a copy, the tensors that it was copied of."""
        base = self.base
        as_it_is = form is None or (
            form.precision != "bf16"
            and not form.compile
            and not self._gains(form)
            and not self._fusible()
        )
        if as_it_is or not isinstance(base, nn.Module):
            compiled = form is not None and form.compile
            return (torch.compile(base, dynamic=False) if compiled else base), None
        assert form is not None
        kept = self.content()
        network = copy.deepcopy(getattr(base, "_orig_mod", base)).eval().requires_grad_(False)
        network = self._fused(network) or network
        if form.precision == "bf16":
            network = network.to(torch.bfloat16)
        network = network.to(memory_format=MEMORY_FORMATS[form.memory_format])  # type: ignore[call-overload]
        if form.compile:
            network = torch.compile(network, dynamic=False, options={"freezing": True})
        return network, kept

    def _fusible(self) -> bool:
        """Whether a copy has something to fuse."""
        if not isinstance(self.base, nn.Module):
            return False
        with contextlib.suppress(Exception):  # what cannot be copied is run itself
            network = copy.deepcopy(getattr(self.base, "_orig_mod", self.base))
            return self._fused(network.eval()) is not None
        return False

    def _fused(self, network: nn.Module) -> _Fused | None:
        """The network with a fused forward pass, where there is one that computes the same."""
        if self._probe is None:
            return None
        probe = self._probe.to(_dtype(network, self._probe.dtype))
        exact = tf32.switched(probe.device, False)  # or roundings would look like another network
        with torch.no_grad(), torch.random.fork_rng(devices=[]), exact:
            try:
                expected = logits_of(network(probe))
                network = copy.deepcopy(network)  # folding changes its weights
                fused = _Fused(network, fusing.rewritten(network, fold=True))
                got = logits_of(fused(probe))
            except Exception:  # left as it is; what is wrong with the network itself is said later
                return None
        return fused if same(got, expected) else None

    def _gains(self, form: Form) -> bool:
        """Whether a copy in this form could differ from ``base``."""
        last = isinstance(self.base, nn.Module) and _is_channels_last(self.base)
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
        """Without the copy, which is made again: compiled code cannot be copied."""
        return {**self.__dict__, "_network": None, "_kept": None}


class _Fused(nn.Module):
    """A copy of the network with its fused forward pass."""

    def __init__(self, network: nn.Module, forward: fusing.Forward) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self.network, x)


def _precisions(base: Any, wanted: str, device: torch.device) -> list[tuple[str, ...]]:
    """Groups of which the first counts that has one the network takes: its fastest."""
    has_tf32 = _dtype(base, torch.float32) == torch.float32 and tf32.why_not(device) is None
    single = ("fp32", "tf32") if has_tf32 else ("fp32",)
    half = "bf16" if isinstance(base, nn.Module) else "bf16 autocast"
    if wanted in ("fp32", "auto", "fastest"):
        return [{"fp32": ("fp32",), "auto": single, "fastest": (*single, half)}[wanted]]
    bf16 = (half,), ("bf16 autocast",)
    return list(dict.fromkeys([*(bf16 if wanted == "bf16" else [(wanted,)]), ("fp32",)]))


def _tensors(base: Any) -> list[torch.Tensor]:
    return [*base.parameters(), *base.buffers()] if isinstance(base, nn.Module) else []


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size())
    a = a.detach()
    # Bits, because a NaN is not equal to itself.
    return torch.equal(a, b) if whole is None else torch.equal(a.view(whole), b.view(whole))


def _dtype(base: Any, default: torch.dtype) -> torch.dtype:
    """What the network computes in: images of another precision have one meaning only."""
    if not isinstance(base, nn.Module):
        return default
    return next((p.dtype for p in base.parameters() if p.is_floating_point()), default)


def _has_images_inside(base: Any) -> bool:
    """Whether a memory format can matter: some weight is that of a convolution."""
    return isinstance(base, nn.Module) and any(p.dim() == 4 for p in base.parameters())


def _is_compiled(base: Any) -> bool:
    return hasattr(base, "_orig_mod")


def _is_channels_last(base: nn.Module) -> bool:
    """Whether the network's convolutions were laid out for channels_last images."""
    return any(
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in base.parameters()
    )
