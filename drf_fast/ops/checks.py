"""Argument checks shared by the public operations."""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from drf_fast.runtime.tensors import FLOATS
from drf_fast.runtime.tracing import (
    are_transforms_active,
    is_forward_mode_active,
    is_traced_or_profiled,
)
from drf_fast.runtime.values import may_read

Scalar = float | int | torch.Tensor


def brief(value: Any) -> str:
    """A value on one short line, for messages; elements of tensors are not read."""
    if isinstance(value, torch.Tensor):
        return f"of {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the longest
        return f"of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def type_and_value(value: Any) -> str:
    return f"{type(value).__name__} {brief(value)}"


def is_tensor(value: Any, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}; use {name}.to_dense()")
    return value


def has_value(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Refuse a meta tensor as a parameter: the result would be uninitialised memory."""
    if is_tensor(tensor, name).device.type == "meta":
        raise ValueError(
            f"{name} must have a value, got a tensor on the meta device; pass a number"
        )
    return tensor


def floating(tensor: Any, name: str) -> torch.Tensor:
    if is_tensor(tensor, name).dtype not in FLOATS:
        # 0..255 without the division would be in other units than sigma.
        how = f"{name}.float()" + (" / 255" if tensor.dtype == torch.uint8 else "")
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}; "
            f"convert it, for example with {how}"
        )
    return tensor


def images(x: Any, name: str = "x") -> torch.Tensor:
    """A non-empty floating (B, ...) tensor with at least one pixel."""
    return nonempty(floating(x, name), name)


def nonempty(x: torch.Tensor, name: str) -> torch.Tensor:
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must be a batch (B, ...) of at least one image with at least one pixel, "
            f"got shape {tuple(x.shape)}"
        )
    return x


def untransformed(operation: str) -> None:
    """Refuse torch.func transforms and forward-mode AD, for which the operations have no rules."""
    if torch.compiler.is_compiling():  # Dynamo traces through the transforms
        return
    if are_transforms_active():
        raise RuntimeError(
            f"{operation} runs on plain tensors, got a torch.func transform around it (vmap, grad, "
            "jvp ...); pass the whole batch instead of vmap, and take gradients with "
            "torch.autograd.grad, or compile the transformed function with torch.compile"
        )
    if is_forward_mode_active():
        raise RuntimeError(
            f"{operation} has derivatives in reverse mode only, got a forward_ad.dual_level around "
            "it; use torch.autograd.grad or backward()"
        )


def exporting() -> bool:
    """Whether torch.export is tracing; its strict mode can be detected since torch 2.7."""
    if not torch.compiler.is_compiling():
        return False
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    # Before, strict mode looked like torch.compile, both using Dynamo; the other mode uses none.
    return not torch.compiler.is_dynamo_compiling()


def same_device(device: torch.device, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(
                f"all tensors must be on one device, got {name} on {tensor.device} and the rest "
                f"on {device}; move it with {name}.to({str(device)!r})"
            )


def on_cpu(value: float | int, dtype: torch.dtype) -> torch.Tensor:
    """A 0-dim CPU tensor, whatever torch's default device is; shared, so never write to it."""
    # Cached, since making one takes as long as a small operation; but a trace must record it.
    if is_traced_or_profiled():
        return torch.scalar_tensor(value, dtype=dtype, device="cpu")
    return _cached_on_cpu(value, dtype)


@functools.lru_cache(256, typed=True)
def _cached_on_cpu(value: float | int, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used outside that mode
        return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def choice(value: Any, name: str, options: Sequence[str]) -> str:
    if isinstance(value, str) and value in options:
        return value
    expected = f"{name} must be one of {', '.join(map(repr, options))}"
    if not isinstance(value, str):
        raise TypeError(f"{expected}, got {type_and_value(value)}")
    raise ValueError(f"{expected}, got {value!r:.60}")


def count(value: Any, name: str, minimum: int = 1, maximum: int = 2**32 - 1) -> int:
    """An integer in [minimum, maximum], NumPy's too; bool and float are refused."""
    if type(value) is not int:
        value = integer(value, f"{name} must be an int")
    if not minimum <= value <= maximum:
        got = type_and_value(value) if abs(value) >= 2**64 else value
        raise ValueError(f"{name} must lie in {minimum}..{maximum}, got {got}")
    return value


def integer(value: Any, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise TypeError(f"{expected}, got {type_and_value(value)}")
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore[return-value]


def scalar(
    value: Any,
    name: str,
    *,
    positive: bool = False,
    nonnegative: bool = False,
) -> torch.Tensor:
    """A real number or 0-dim tensor as a 0-dim float64 tensor (a tensor stays on its device).

    The value of a tensor is checked where ``may_read`` allows to read it.
    """
    if isinstance(value, torch.Tensor):
        if has_value(value, name).dim() != 0:
            raise ValueError(
                f"{name} must be a number or a 0-dim tensor, got shape {tuple(value.shape)}"
            )
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} must be a real number, got a tensor of {value.dtype}")
        if value.requires_grad:
            raise ValueError(f"{name} must not require a gradient; pass {name}.detach()")
        number = float(value) if may_read(value.device) else None
        tensor = value if value.dtype == torch.float64 else value.to(torch.float64)
    elif isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool):
        if torch.compiler.is_compiling():
            # While compiling, a number that changes from call to call is symbolic and has no value
            # to read. The product makes it an input of the graph; a tensor made of it directly
            # would be a constant, and each new value would recompile the graph.
            product: Any = on_cpu(1.0, torch.float64) * value
            number, tensor = None, product
        else:
            try:
                number = float(value)
            except OverflowError:
                raise ValueError(f"{name} must fit a float, got {type_and_value(value)}") from None
            tensor = on_cpu(number, torch.float64)
    else:
        raise TypeError(f"{name} must be a number or a 0-dim tensor, got {type_and_value(value)}")
    if number is not None:
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")
        if positive and number <= 0:
            raise ValueError(f"{name} must be above 0, got {number}")
        if nonnegative and number < 0:
            raise ValueError(f"{name} must be 0 or more, got {number}")
    return tensor


def logits_and_target(logits: Any, target: Any, num_samples: Any, sample_dim: Any) -> int:
    """Check the logits, in either order, and their (B,) labels; return the number of samples m."""
    floating(logits, "logits")
    if isinstance(sample_dim, bool) or not isinstance(sample_dim, int) or sample_dim not in (0, 1):
        raise ValueError(
            "sample_dim must be 1 (the m rows of an image are consecutive) or 0 (sample-major, "
            f"torch.cat over noises), got {brief(sample_dim)}"
        )
    if num_samples is not None:
        num_samples = count(num_samples, "num_samples")
    if logits.dim() == 2:
        if num_samples is None:
            raise ValueError(
                f"2-D logits of shape {tuple(logits.shape)} need num_samples, the number of noisy "
                "rows of each image"
            )
        rows, classes = logits.shape
        if rows % num_samples:
            raise ValueError(
                f"the {rows} rows of logits must be a multiple of num_samples={num_samples}"
            )
        batch, samples = rows // num_samples, num_samples
    elif logits.dim() != 3:
        raise ValueError(
            "logits must be (B*m, K) with num_samples, or 3-D (B, m, K), with sample_dim=0 "
            f"(m, B, K), got shape {tuple(logits.shape)}"
        )
    elif num_samples is not None and num_samples != logits.shape[sample_dim]:
        raise ValueError(
            f"num_samples={num_samples} contradicts logits of shape {tuple(logits.shape)} with "
            f"sample_dim={sample_dim}"
        )
    else:
        classes, samples = logits.shape[2], logits.shape[sample_dim]
        batch = logits.shape[1 - sample_dim]
    if batch == 0 or samples == 0:
        raise ValueError(f"the batch must not be empty, got {batch} images of {samples} samples")
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got logits with K={classes}")
    labels(target, batch, samples, classes)
    same_device(logits.device, target=target)
    return samples


def images_of_step(grad: Any, x: Any, x_adv: Any) -> None:
    """Check x and x_adv (B, ...) and the gradient (B*m, ...) of ``adversary_step``."""
    images(x)
    images(x_adv, "x_adv")
    images(grad, "grad")
    for name, tensor in (("x_adv", x_adv), ("grad", grad)):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
    same_device(x.device, x_adv=x_adv, grad=grad)
    if x_adv.shape != x.shape or grad.shape[1:] != x.shape[1:] or grad.shape[0] % x.shape[0]:
        raise ValueError(
            "adversary_step needs x and x_adv (B, ...) and grad (B*m, ...), got "
            f"{tuple(x.shape)}, {tuple(x_adv.shape)} and {tuple(grad.shape)}"
        )


def labels(target: Any, batch: int, samples: int, classes: int | None = None) -> None:
    """Check the type and shape of (B,) labels; what looks like a known mistake is named.

    ``classes`` is None before the network has run.
    """
    if is_tensor(target, "target").shape != (batch,):
        shape = tuple(target.shape)
        how = how_to_pass_labels(shape, batch, classes, "target")
        if how is None and shape == (batch * samples,):
            how = "labels are not repeated for the noisy copies"
        how = how or "check num_samples and sample_dim"
        raise ValueError(
            f"target must hold one label for each of the {batch} images ({batch * samples} rows of "
            f"logits, {samples} an image), got shape {shape}; {how}"
        )
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 labels, got {target.dtype}; use target.long()")


def how_to_pass_labels(
    shape: tuple[int, ...], batch: int, classes: int | None, name: str
) -> str | None:
    """What to do about labels of this shape where (batch,) is needed; None if they look unknown."""
    if len(shape) == 2 and shape[1] > 1 and shape == (batch, classes or shape[1]):
        return f"of one-hot labels pass {name}.argmax(1); soft labels are not supported"
    return f"pass {name}.squeeze(1)" if shape == (batch, 1) else None


def box(clamp: Any) -> list[float] | None:
    """``clamp`` as the raw operations take it: [low, high] of valid pixel values, or None."""
    if clamp is None:
        return None
    low = high = math.nan
    if (
        isinstance(clamp, (tuple, list))
        and len(clamp) == 2
        and all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in clamp)
    ):
        with contextlib.suppress(OverflowError):
            low, high = float(clamp[0]), float(clamp[1])
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"clamp must be (low, high) with low < high, finite, or None, got {brief(clamp)}"
        )
    return [low, high]


def counts(successes: Any, trials: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Successes and trials as contiguous int64 tensors of one shape."""
    tensors = []
    for name, value in (("successes", successes), ("trials", trials)):
        if isinstance(value, (int, numbers.Integral)) and not isinstance(value, bool):
            value = on_cpu(count(value, name, -(2**63), 2**63 - 1), torch.int64)
        tensor = is_tensor(value, name)
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be an int or an int64 tensor, got {tensor.dtype}")
        tensors.append(tensor)
    device = next((tensor.device for tensor in tensors if tensor.dim()), tensors[0].device)
    tensors = [t.to(device) if t.dim() == 0 and not t.is_meta else t for t in tensors]
    same_device(device, successes=tensors[0], trials=tensors[1])
    try:
        first, second = torch.broadcast_tensors(*tensors)
    except RuntimeError as error:
        raise ValueError(
            f"successes and trials must have shapes that broadcast, got {tuple(tensors[0].shape)} "
            f"and {tuple(tensors[1].shape)}"
        ) from error
    return first.contiguous(), second.contiguous()


def probability(alpha: Any) -> torch.Tensor:
    """An error probability as a 0-dim float64 tensor."""
    tensor = scalar(alpha, "alpha", positive=True)
    if may_read(tensor.device) and float(tensor) >= 1:
        raise ValueError(f"alpha must be a probability, 0 < alpha < 1, got {float(tensor)}")
    return tensor
