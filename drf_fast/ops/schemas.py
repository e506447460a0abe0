"""The raw operations: their schemas, their shapes for tracing, and the way to a backend.

``torch.ops.drf_fast.*`` take tensors that ``functional.py`` has checked. All that may change from
step to step (key, sigma, lambda, epsilon, step size, sample offset) is a 0-dim tensor here, never
a number: a number would be baked into a compiled graph or a CUDA graph, and a graph that replays
one noise key voids every certificate that rests on it. The one number is noisy_levels' sigma, which
names a table: it is looked up when the operation runs, and is no part of a graph.

Logits are (B, m, K) in any strides, so both orders of the m noisy rows of an image are views of
the caller's tensor. A loss returns its value and its whole gradient, both from one read of the
logits; ``need_grad=False`` returns an empty gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library, register_fake

from drf_fast.backends.dispatch import implementation
from drf_fast.backends.reference.levels import level_table
from drf_fast.runtime.following import followed
from drf_fast.runtime.tensors import arithmetic_dtype, memory_format_of

REDUCTIONS = ("none", "mean", "sum")
GRAD_NORMS = ("image", "batch", "none")

_SCHEMAS = {
    "noisy_repeat": "(Tensor x, Tensor sigma, Tensor key, Tensor image_ids, Tensor sample_offset,"
    " SymInt num_samples, str stream) -> Tensor",
    "noisy_repeat_backward": "(Tensor grad, SymInt num_samples) -> Tensor",
    "noisy_levels": "(Tensor u, float sigma, Tensor key, Tensor image_ids, Tensor sample_offset,"
    " SymInt num_samples, str stream, ScalarType dtype) -> Tensor",
    "smooth_ce": "(Tensor logits, Tensor target, str reduction, bool need_grad)"
    " -> (Tensor, Tensor)",
    "consistency_loss": "(Tensor logits, Tensor target, Tensor lam, Tensor eta, str reduction,"
    " bool need_grad) -> (Tensor, Tensor)",
    "macer_loss": "(Tensor logits, Tensor target, Tensor sigma, Tensor lam, Tensor gamma,"
    " Tensor beta, bool need_grad) -> (Tensor, Tensor)",
    "adversary_step": "(Tensor grad, Tensor x, Tensor x_adv, Tensor step_size, Tensor epsilon,"
    " Tensor lam, Tensor sigma, Tensor key, Tensor image_ids, str ball, str grad_norm,"
    " float[]? clamp) -> (Tensor, Tensor, Tensor)",
    "max_pool_relu": "(Tensor x, bool indexed) -> (Tensor, Tensor)",
    "max_pool_relu_backward": "(Tensor grad, Tensor index) -> Tensor",
    "pooled_image_gradient": "(Tensor grad, Tensor index, Tensor weight) -> Tensor",
    "vote": "(Tensor logits, Tensor(a!) counts) -> ()",
    "clopper_pearson_lower": "(Tensor successes, Tensor trials, Tensor alpha) -> Tensor",
    "certified_radius": "(Tensor successes, Tensor trials, Tensor sigma, Tensor alpha) -> Tensor",
}

_library = Library("drf_fast", "DEF")


def _dispatcher(name: str) -> Callable[..., Any]:
    def dispatch(first: torch.Tensor, *arguments: Any) -> Any:
        return implementation(name, first.device.type)(first, *arguments)

    dispatch.__name__ = name
    return dispatch


def _noisy_levels(u: torch.Tensor, sigma: float, *names: Any) -> torch.Tensor:
    """The backends take what sigma means: thresholds and guide, on the device of u."""
    table = level_table(sigma, u.device)
    run = implementation("noisy_levels", u.device.type)
    return run(u, table.thresholds, table.guide, *names)


_IMPLEMENTATIONS = {name: _dispatcher(name) for name in _SCHEMAS} | {"noisy_levels": _noisy_levels}

for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _IMPLEMENTATIONS[_name], "CompositeExplicitAutograd")


def repeated_like(
    x: torch.Tensor, num_samples: Any, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An empty (B*m, ...) tensor in the dtype, device and memory format of x (B, ...)."""
    shape = (x.shape[0] * num_samples, *x.shape[1:])
    out = torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
    return out.contiguous(memory_format=memory_format_of(x))


@register_fake("drf_fast::noisy_repeat", lib=_library)
def _(x, sigma, key, image_ids, sample_offset, num_samples, stream):
    return repeated_like(x, num_samples)


@register_fake("drf_fast::noisy_levels", lib=_library)
def _(u, sigma, key, image_ids, sample_offset, num_samples, stream, dtype):
    return repeated_like(u, num_samples, dtype)


@register_fake("drf_fast::noisy_repeat_backward", lib=_library)
def _(grad, num_samples):
    out = grad.new_empty((grad.shape[0] // num_samples, *grad.shape[1:]))
    return out.contiguous(memory_format=memory_format_of(grad))


def _fake_loss(logits, reduction, need_grad):
    shape = (logits.shape[0],) if reduction == "none" else ()
    loss = logits.new_empty(shape, dtype=arithmetic_dtype(logits.dtype))
    return loss, torch.empty_like(logits) if need_grad else logits.new_empty((0,))


@register_fake("drf_fast::smooth_ce", lib=_library)
def _(logits, target, reduction, need_grad):
    return _fake_loss(logits, reduction, need_grad)


@register_fake("drf_fast::consistency_loss", lib=_library)
def _(logits, target, lam, eta, reduction, need_grad):
    return _fake_loss(logits, reduction, need_grad)


@register_fake("drf_fast::macer_loss", lib=_library)
def _(logits, target, sigma, lam, gamma, beta, need_grad):
    return _fake_loss(logits, "mean", need_grad)


@register_fake("drf_fast::adversary_step", lib=_library)
def _(grad, x, x_adv, step_size, epsilon, lam, sigma, key, image_ids, ball, grad_norm, clamp):
    distance = x.new_empty((x.shape[0],), dtype=arithmetic_dtype(x.dtype))
    result = torch.empty_like(x)  # of a slice of channels_last images this is channels_last
    return result, repeated_like(result, grad.shape[0] // x.shape[0]), distance


def _fake_channels_last(like, shape, dtype):
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


@register_fake("drf_fast::max_pool_relu", lib=_library)
def _(x, indexed):
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2)
    index_shape = shape if indexed else (0, channels, 1, 1)
    return (
        _fake_channels_last(x, shape, x.dtype),
        _fake_channels_last(x, index_shape, torch.uint8),
    )


@register_fake("drf_fast::max_pool_relu_backward", lib=_library)
def _(grad, index):
    batch, channels, rows, columns = grad.shape
    return _fake_channels_last(grad, (batch, channels, 2 * rows, 2 * columns), grad.dtype)


@register_fake("drf_fast::pooled_image_gradient", lib=_library)
def _(grad, index, weight):
    batch, _channels, rows, columns = grad.shape
    k = weight.shape[-1]
    return grad.new_empty((batch, 1, 2 * rows + k - 1, 2 * columns + k - 1))


@register_fake("drf_fast::vote", lib=_library)
def _(logits, counts):
    return None


@register_fake("drf_fast::clopper_pearson_lower", lib=_library)
def _(successes, trials, alpha):
    return torch.empty_like(successes, dtype=torch.float64)


@register_fake("drf_fast::certified_radius", lib=_library)
def _(successes, trials, sigma, alpha):
    return torch.empty_like(successes, dtype=torch.float64)


# What a call may hold for the short way; symbolic numbers and subclasses of tensors go torch's.
_PLAIN = frozenset(
    {torch.Tensor, torch.nn.Parameter, int, float, bool, str, list, type(None), torch.dtype}
)


def _operation(name: str) -> Callable[..., Any]:
    """``torch.ops.drf_fast.NAME``, past torch's dispatcher where nobody would see the difference.

    From Python through it and back to Python takes longer than a small operation. Without it there
    is no autograd: tensors that require a gradient are passed under ``torch.no_grad`` alone, as
    inside an ``autograd.Function``.
    """
    through_torch = getattr(torch.ops.drf_fast, name).default
    itself = _IMPLEMENTATIONS[name]

    def call(first: torch.Tensor, *others: Any) -> Any:
        # Compilers follow no further than the first of these. On meta, shapes alone are asked for.
        if followed() or first.is_meta or type(first) is not torch.Tensor:
            return through_torch(first, *others)
        if not _PLAIN.issuperset(map(type, others)):
            return through_torch(first, *others)
        return itself(first, *others)

    call.__name__ = call.__qualname__ = name
    return call


noisy_repeat = _operation("noisy_repeat")
noisy_levels = _operation("noisy_levels")
noisy_repeat_backward = _operation("noisy_repeat_backward")
smooth_ce = _operation("smooth_ce")
consistency_loss = _operation("consistency_loss")
macer_loss = _operation("macer_loss")
adversary_step = _operation("adversary_step")
max_pool_relu = _operation("max_pool_relu")
max_pool_relu_backward = _operation("max_pool_relu_backward")
pooled_image_gradient = _operation("pooled_image_gradient")
vote = _operation("vote")
clopper_pearson_lower = _operation("clopper_pearson_lower")
certified_radius = _operation("certified_radius")
