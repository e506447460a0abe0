"""The raw operations: schemas, fake implementations for tracing, dispatch to a backend.

``torch.ops.drf_fast.*`` take tensors that ``functional.py`` has checked. All that may change from
step to step (key, sigma, lambda, epsilon, step size, sample offset) is a 0-dim tensor here, never
a number: a number would be baked into a compiled graph or a CUDA graph, and a graph that replays
one noise key voids every certificate that rests on it. The one exception is the sigma of
noisy_levels: it selects a table, which is looked up when the operation runs.

Logits are (B, m, K) in any strides, so both orders of the m noisy rows of an image are views of
the caller's tensor. A loss returns its value and its whole gradient, both from one read of the
logits, or from two on a GPU where those of an image do not fit registers; ``need_grad=False``
returns an empty gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch.autograd.graph import increment_version
from torch.library import Library, register_fake

from drf_fast.backends.dispatch import implementation
from drf_fast.config.choices import GradNorm
from drf_fast.runtime.level_table import level_table
from drf_fast.runtime.tensors import arithmetic_dtype, empty_rows
from drf_fast.runtime.tracing import is_traced_or_profiled

REDUCTIONS = ("none", "mean", "sum")
GRAD_NORMS = get_args(GradNorm)

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


def _noisy_levels(u: torch.Tensor, sigma: float, *noise: Any) -> torch.Tensor:
    """The backends take the table of sigma, thresholds and guide, on the device of u."""
    table = level_table(sigma, u.device)
    run = implementation("noisy_levels", u.device.type)
    return run(u, table.thresholds, table.guide, *noise)


def _vote(logits: torch.Tensor, counts: torch.Tensor) -> None:
    """The cores write to memory, so autograd must be told that the counts have changed."""
    implementation("vote", logits.device.type)(logits, counts)
    if not counts.is_inference():  # those have no version
        increment_version(counts)


_IMPLEMENTATIONS = {name: _dispatcher(name) for name in _SCHEMAS} | {
    "noisy_levels": _noisy_levels,
    "vote": _vote,
}

for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _IMPLEMENTATIONS[_name], "CompositeExplicitAutograd")


@register_fake("drf_fast::noisy_repeat", lib=_library)
def _(x, sigma, key, image_ids, sample_offset, num_samples, stream):
    return empty_rows(x, x.shape[0] * num_samples)


@register_fake("drf_fast::noisy_levels", lib=_library)
def _(u, sigma, key, image_ids, sample_offset, num_samples, stream, dtype):
    return empty_rows(u, u.shape[0] * num_samples, dtype)


@register_fake("drf_fast::noisy_repeat_backward", lib=_library)
def _(grad, num_samples):
    return empty_rows(grad, grad.shape[0] // num_samples)


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
    return result, empty_rows(result, grad.shape[0]), distance


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
    return successes.new_empty(successes.shape, dtype=torch.float64)


@register_fake("drf_fast::certified_radius", lib=_library)
def _(successes, trials, sigma, alpha):
    return successes.new_empty(successes.shape, dtype=torch.float64)


# Types of arguments that may bypass the dispatcher: no symbolic numbers, no tensor subclasses.
_DIRECT_TYPES = frozenset(
    {torch.Tensor, torch.nn.Parameter, int, float, bool, str, list, type(None), torch.dtype}
)


def _bypassing_dispatcher(name: str) -> Callable[..., Any]:
    """``torch.ops.drf_fast.NAME``, bypassing torch's dispatcher where that makes no difference.

    The way from Python through the dispatcher back to Python takes longer than a small operation.
    The bypass skips autograd, so tensors that require a gradient may be passed under
    ``torch.no_grad`` only, as inside an ``autograd.Function``.
    """
    dispatched = getattr(torch.ops.drf_fast, name).default
    direct = _IMPLEMENTATIONS[name]

    def call(first: torch.Tensor, *others: Any) -> Any:
        # First, since torch.compile cannot trace the other tests. Meta tensors need the fake
        # implementation.
        if is_traced_or_profiled() or first.is_meta or type(first) is not torch.Tensor:
            return dispatched(first, *others)
        if not _DIRECT_TYPES.issuperset(map(type, others)):
            return dispatched(first, *others)
        return direct(first, *others)

    call.__name__ = call.__qualname__ = name
    return call


noisy_repeat = _bypassing_dispatcher("noisy_repeat")
noisy_levels = _bypassing_dispatcher("noisy_levels")
noisy_repeat_backward = _bypassing_dispatcher("noisy_repeat_backward")
smooth_ce = _bypassing_dispatcher("smooth_ce")
consistency_loss = _bypassing_dispatcher("consistency_loss")
macer_loss = _bypassing_dispatcher("macer_loss")
adversary_step = _bypassing_dispatcher("adversary_step")
max_pool_relu = _bypassing_dispatcher("max_pool_relu")
max_pool_relu_backward = _bypassing_dispatcher("max_pool_relu_backward")
pooled_image_gradient = _bypassing_dispatcher("pooled_image_gradient")
vote = _bypassing_dispatcher("vote")
clopper_pearson_lower = _bypassing_dispatcher("clopper_pearson_lower")
certified_radius = _bypassing_dispatcher("certified_radius")
