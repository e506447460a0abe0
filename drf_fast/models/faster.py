"""``faster``: a network for training loops in the fastest form found, with the same parameters."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from drf_fast.errors import InputError
from drf_fast.models import fusing
from drf_fast.models.module_state import TracingError, UnstableError, is_compiled
from drf_fast.models.module_state import state as state_of
from drf_fast.ops import checks as check
from drf_fast.runtime import machine, tf32
from drf_fast.runtime.fastest import fastest
from drf_fast.runtime.frozen import frozen
from drf_fast.runtime.logits import logits_agree, logits_of
from drf_fast.runtime.memory import is_out_of_memory
from drf_fast.runtime.modules import dtype_of, has_convolutions, is_channels_last
from drf_fast.runtime.progress import say
from drf_fast.runtime.text import one_line
from drf_fast.runtime.tracing import are_transforms_active

_Network = TypeVar("_Network")
# Precision -> groups of values of ``bf16``; the fastest of the first group that works is chosen.
_AUTOCAST_CHOICES: dict[str, list[tuple[bool, ...]]] = {
    "fp32": [(False,)],
    "bf16": [(True,), (False,)],
    "fastest": [(False, True)],
}
# Attributes of a ``Faster`` itself, not of the network it runs.
_FIELDS = {"_wrapped", "_last", "_bf16", "_forwards", "_others", "_stable"}
_OWN = frozenset(vars(nn.Module())) - {"training"} | _FIELDS
_MAX_STATES = 8  # traced states of a network: an attribute that counts calls would give many


class Faster(nn.Module):
    """``network`` run in another form; modules, parameters and state dict are the network's own.

    Args:
        network: the network, which may still be used directly.
        last: whether images are converted to channels_last.
        bf16: whether it runs under bfloat16 autocast; logits are converted to float32.

    Attributes that the network has are read from it and set on it.
    """

    def __init__(self, network: nn.Module, last: bool = False, bf16: bool = False) -> None:
        super().__init__()
        # Past nn.Module.__setattr__, which would make the network a submodule, and give the keys of
        # the state dict a prefix; it also refuses names that layers of the network have.
        self.__dict__.update(_wrapped=network, _last=last, _bf16=bf16)
        self.__dict__.update(_forwards={}, _others=set(), _stable=True)
        self._modules = network._modules
        self._parameters, self._buffers = network._parameters, network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The network's own flag, so that there is only one."""
        network = self.__dict__.get("_wrapped")
        return network is None or network.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "_wrapped" in self.__dict__:
            self._wrapped.training = mode

    def train(self, mode: bool = True) -> Faster:
        """The network's own ``train``, which may leave parts of it in eval mode."""
        self._wrapped.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own, with what its hooks and extra state add."""
        return self._wrapped.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own."""
        return self._wrapped.load_state_dict(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> Any:
        """The network's output, up to rounding."""
        if not self._bf16:
            return self._run(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return tree_map(_in_float, self._run(x))

    def _run(self, x: torch.Tensor) -> Any:
        network = self._wrapped
        x = _in_double(network, x)
        if self._last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        forward = self.fused(x)
        if forward is not None:
            return forward(network, x)
        with _Reshaping() if self._last and not is_compiled(network) else nullcontext():
            return network(x)

    def fused(self, x: torch.Tensor) -> fusing.Forward | None:
        """The fused forward pass for the network's current state; None if there is none.

        That of a new state is compared with the network's own, on ``x``.
        """
        if not self._stable:
            return None
        if not isinstance(x, torch.Tensor):  # a trace of this call, to be fused as a whole
            return None
        try:
            state = state_of(self._wrapped)
            forward = self._forwards.get(state)
            # Of states without one only the hash: they may hold tensors of a pass.
            known = forward is not None or hash(state) in self._others
            known = known or len(self._forwards) + len(self._others) >= _MAX_STATES
            # The parameters may be others for the moment, which cannot be copied.
            if not known and not torch.compiler.is_compiling() and not are_transforms_active():
                self._others.add(hash(state))
                forward = fusing.rewritten(self._wrapped)
                if not _agrees(forward, self._wrapped, x):
                    return None
                self._others.discard(hash(state))
                self._forwards[state] = forward
        except UnstableError:  # each pass would be a new state
            self._stable = False
            self._forwards.clear()
            return None
        except TracingError:
            return None
        return forward

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_wrapped")
            if network is None:
                raise
            if name in ("last", "bf16") and not hasattr(network, name):
                return self.__dict__[f"_{name}"]
            return getattr(network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        network = self.__dict__.get("_wrapped")
        if network is None or name in _OWN or not hasattr(network, name):
            super().__setattr__(name, value)
        else:  # the network's code reads its own attributes
            setattr(network, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_forwards": {}, "_others": set()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Faster:
        return Faster(copy.deepcopy(self._wrapped, memo), self._last, self._bf16)


class _Reshaping(TorchFunctionMode):
    """``view`` acts as ``reshape`` inside: code that cannot be traced may flatten channels_last."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.view and not isinstance(args[1], torch.dtype) and not kwargs:
            return torch.Tensor.reshape(*args)
        return func(*args, **(kwargs or {}))


def faster(model: _Network, example: torch.Tensor, *, precision: str = "fp32") -> _Network:
    """The same network in the fastest form found by a short measurement, for training loops.

    Convolution, max pooling and ReLU are fused where torch.fx can trace the code, and weights and
    images get the faster memory format. Values and gradients are those of ``model`` up to rounding;
    the first batch in each mode is compared.

    The parameters are the same objects, whose memory format changes **in place**, so an optimizer
    made before or after keeps working, except a ``fused=True`` one that has taken steps: its state
    would be in the old format. Keys of the state dict do not change. A form in which the network
    fails is left out and reported once.

    Args:
        model: network (N, ...) -> (N, K); a callable that is no ``nn.Module`` is returned as it is.
        example: (N, ...) images as in training, on the network's device; values do not matter.
        precision: "fp32": unchanged; "bf16": under bfloat16 autocast, which rounds to 8 bits
            (parameters, logits and gradients stay float32); "fastest": the faster of both.

    Returns:
        A module to be trained instead of ``model``, with the choices as attributes ``last``
        (channels_last) and ``bf16``, unless the network has attributes of these names; ``model``
        itself where nothing can be fused and no other form is faster.

    Raises:
        TypeError, ValueError: bad arguments, or a network that does not take ``example``.
    """
    if not callable(model):
        raise TypeError(f"model must be a network, a callable, got {type(model).__name__}")
    check.images(example, "example")
    check.choice(precision, "precision", tuple(_AUTOCAST_CHOICES))
    network: Any = model
    if isinstance(network, nn.Module) and not isinstance(network, Faster):
        network = _fastest(network, example, None, precision).network
    return cast("_Network", network)


def place(
    model: nn.Module,
    device: torch.device,
    memory_format: str,
    precision: str,
    image_shape: tuple[int, ...],
    rows: int = 256,
    remedy: str = machine.TRAINING_REMEDY,
) -> machine.Placed:
    """As ``machine.place``, with the fusions of ``faster``; ``remedy`` is for lack of memory.

    Raises:
        InputError: the network fails with images of this shape in this precision and format.
        RunError: out of memory for ``rows`` rows.
    """
    example = torch.zeros((rows, *image_shape), device=device)
    requested = None if memory_format == "auto" else memory_format
    try:
        with machine.autocast(device, precision):
            return _fastest(model.to(device), example, requested)
    except ValueError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise machine.lack_of_memory(error.__cause__, rows, image_shape, remedy) from error
        raise InputError(f"--arch, in {precision}: {error}") from error


def _fastest(
    model: nn.Module, example: torch.Tensor, requested: str | None, precision: str = "fp32"
) -> machine.Placed:
    # A network without biases makes the same of all black images, so nothing could be compared.
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(example.shape, generator=generator, device="cpu").to(example)
    try:
        expected = _logits(model, example)
    except Exception as error:  # whatever a network of the user's own does
        raise ValueError(
            f"the network must take images {tuple(example.shape)} in {example.dtype}, got "
            f"{one_line(error)}; correct the network or choose other images"
        ) from error
    autocast = torch.is_autocast_enabled(example.device.type)
    fused = Faster(model).fused(_in_double(model, example)) is not None
    images = example.dim() == 4 and has_convolutions(model)
    before = "channels_last" if is_channels_last(model) else "contiguous"
    names = list(machine.MEMORY_FORMATS) if images else [before]
    names = names if requested is None else [requested]
    groups = [
        [(name, bf16) for bf16 in group for name in names] for group in _AUTOCAST_CHOICES[precision]
    ]

    def attempt(form: tuple[str, bool]) -> tuple[float, None]:
        name, bf16 = form
        network = _in_form(model, name, fused, bf16)
        if not logits_agree(_logits(network, example), expected, bf16 or autocast):
            raise RuntimeError("it returns other logits then")
        return machine.seconds(network, example), None

    found = fastest(groups, attempt)
    if found.form is None:
        _in_form(model, before, fused)
        first = next(iter(found.failures.values()))
        raise ValueError(
            "the network must take a forward and a backward pass of images "
            f"{tuple(example.shape)}, got {one_line(first)}; correct the network, or choose other "
            "images, another memory format or precision"
        ) from first
    left_out = {
        name + bf16 * " bf16": one_line(error) for (name, bf16), error in found.failures.items()
    }
    for name, reason in left_out.items():
        say(f"the network cannot take {name} images and is run without them ({reason})")
    name, bf16 = found.form
    return machine.Placed(_in_form(model, name, fused, bf16), name, left_out)


def _in_form(model: nn.Module, name: str, fused: bool, bf16: bool = False) -> nn.Module:
    if has_convolutions(model):
        model.to(memory_format=machine.MEMORY_FORMATS[name])  # type: ignore[call-overload]
    last = name == "channels_last"
    double = any(p.dtype == torch.float64 for p in model.parameters())
    return Faster(model, last, bf16) if fused or last or double or bf16 else model


def _logits(network: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """Logits in eval mode, without side effects: no gradient, torch's generator restored."""
    exact = tf32.switched(example.device, False)  # else rounding would look like a difference
    with torch.no_grad(), frozen(network), torch.random.fork_rng(devices=[]), exact:
        return logits_of(network(_in_double(network, example)))


def _in_double(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``x`` in float64 if the network is: it takes float32 images, too."""
    dtype = dtype_of(network, x.dtype)
    return x.to(dtype) if dtype == torch.float64 else x


def _in_float(output: Any) -> Any:
    """A part of a network's output, in float32 if it is a bfloat16 tensor."""
    half = isinstance(output, torch.Tensor) and output.dtype == torch.bfloat16
    return output.float() if half else output


def _agrees(forward: fusing.Forward, network: nn.Module, x: torch.Tensor) -> bool:
    """Whether ``forward`` gives the network's output for ``x`` in its present mode, up to rounding.

    Each runs on a copy and from the same random state: in training mode a pass may draw a mask and
    changes running statistics.
    """

    def outputs(run: fusing.Forward) -> list[torch.Tensor]:
        exact = tf32.switched(x.device, False)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), exact:
            # A copy of the images, too: the network may normalise in place.
            output = run(copy.deepcopy(network), x.detach().clone())
            others = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            return [logits_of(output), *others]

    try:
        with _Reshaping():
            expected = outputs(nn.Module.__call__)
        with warnings.catch_warnings():  # of code that does something else than the network's
            warnings.simplefilter("ignore")
            got = outputs(forward)
        half = torch.is_autocast_enabled(x.device.type)
        return all(logits_agree(*pair, half) for pair in zip(got, expected, strict=True))
    except Exception:  # an error of the network itself shows when it runs
        return False
