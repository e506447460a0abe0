"""Rewriting a network's forward pass to use our fused operations, where torch.fx can trace it.

A trace records one run of the Python code, with its branches taken and its constants fixed. So it
is valid only while the attributes that the code may read are unchanged (``state``); it is refused
if the code computes with tensors of its own, if it switches gradients or autocast (a trace records
neither), or if two traces differ; and callers compare its output with the network's before they use
it. Tracing patches ``nn.Module`` for the whole process: one thread does it at a time, and what
other threads run meanwhile is passed on.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from drf_fast.models.module_state import (
    Attributes,
    TracingError,
    UnstableError,
    is_compiled,
    state,
)
from drf_fast.ops.pooling import conv_pool_relu, max_pool_relu

Forward = Callable[[nn.Module, torch.Tensor], Any]
_LOCK = threading.RLock()  # of tracing; code may trace a part of itself
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_POOLS = (F.max_pool2d, torch.max_pool2d)
_AUTOCAST_DEVICES = ("cpu", "cuda")
# Functions of a tensor that read its shape or type, and so no value.
_OF_THE_SHAPE = {"__get__", "__len__", "size", "dim", "numel", "is_floating_point"}


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else a trace would fix what is computed from a buffer

    def __init__(self) -> None:
        super().__init__()
        self._modes = _modes()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_compiled(m) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise TracingError("its code switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[bool, ...]:
    """Whether gradients and autocast are on: torch.fx does not record code that switches them."""
    return (torch.is_grad_enabled(), *map(torch.is_autocast_enabled, _AUTOCAST_DEVICES))


@contextlib.contextmanager
def _switched(on: bool) -> Iterator[None]:
    """Gradients and autocast on or off inside the block."""
    before = [torch.is_autocast_enabled(device) for device in _AUTOCAST_DEVICES]
    try:
        for device in _AUTOCAST_DEVICES:
            torch.set_autocast_enabled(device, on)
        with torch.set_grad_enabled(on):
            yield
    finally:
        for device, enabled in zip(_AUTOCAST_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


class _NoValues(TorchFunctionMode):
    """Refuses code that computes with tensors of its own, whose values a trace would fix.

    For example ``self.temperature.item()``, or ``self.calls += 1`` of a buffer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, fx.Proxy) for kind in types):
            return fx.Proxy.__torch_function__(func, types, args, kwargs or {})
        known = getattr(func, "__name__", "") in _OF_THE_SHAPE
        if not known and any(isinstance(value, torch.Tensor) for value in args):
            raise TracingError("its code computes with tensors of its own")
        return func(*args, **(kwargs or {}))


def rewritten(network: nn.Module, *, fold: bool = False) -> Forward:
    """``forward(network, x)`` with pooling and ReLU fused, and ``reshape`` for ``view``.

    Args:
        network: in the mode in which it will be run; unchanged unless ``fold``.
        fold: fold batch normalisation into the convolutions before it, which **changes** the
            network's convolutions: for a copy in eval mode.

    Raises:
        TracingError: the code cannot be traced, or there is nothing to fuse.
    """
    if isinstance(network, fx.GraphModule) or is_compiled(network):
        raise TracingError("it is compiled")
    graph = _trace(network)
    modules = dict(network.named_modules())
    changes = _fold(graph, modules) if fold else 0
    changes += _pool(graph, modules) + _reshape(graph)
    if not changes:
        raise TracingError("there is nothing to fuse")
    graph.lint()
    # The function only: called with the network itself, it uses the network's current weights.
    return type(fx.GraphModule(network, graph)).forward


def _trace(network: nn.Module) -> fx.Graph:
    before, known = state(network), [Attributes(module) for module in network.modules()]
    graphs = []
    try:
        for on in (True, False):  # code that switches them shows in one of the two
            with _LOCK, _switched(on), _NoValues():
                graphs.append(_Tracer().trace(network))
        written = any(attributes.has_other_tensors() for attributes in known)
    except TracingError:
        raise
    except Exception as error:  # whatever the code raises for an fx.Proxy
        raise TracingError(f"{type(error).__name__} while tracing") from error
    finally:
        changed = [attributes.restore() for attributes in known]
    graph = graphs[0]
    if any(n.op == "get_attr" and "_tensor_constant" in str(n.target) for n in graph.nodes):
        raise TracingError("its code makes tensors")
    if any(changed) or state(network) != before:
        raise UnstableError("its code does something else every time")
    if str(graph) != str(graphs[1]):
        raise TracingError("its code switches gradients or autocast on or off")
    if written:
        raise TracingError("its code replaces a buffer")
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        raise TracingError("it takes more than images")
    return graph


# ---- convolution and batch normalisation


def _fold(graph: fx.Graph, modules: dict[str, nn.Module]) -> int:
    folded = 0
    for node in list(graph.nodes):
        norm = _module(node, modules, nn.BatchNorm2d)
        source = node.args[0] if norm is not None and node.args else None
        conv = _module(source, modules, nn.Conv2d)
        if norm is None or conv is None or not isinstance(source, fx.Node):
            continue
        only_use = len(source.users) == 1 and _calls(graph, source.target) == 1
        if not only_use or norm.training or norm.running_mean is None or norm.running_var is None:
            continue
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        folded += 1
    return folded


def _calls(graph: fx.Graph, target: Any) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.nodes)


# ---- pooling and ReLU, in either order


def _pool(graph: fx.Graph, modules: dict[str, nn.Module]) -> int:
    fused = 0
    for last in list(graph.nodes):
        first = last.args[0] if last.args else None
        if not isinstance(first, fx.Node) or len(first.users) != 1:
            continue
        pairs = ((_is_pool(first, modules), _is_relu(last, modules)),
                 (_is_relu(first, modules), _is_pool(last, modules)))  # fmt: skip
        if (True, True) not in pairs:
            continue
        source = first.args[0]
        if _is_in_place(first, modules) and isinstance(source, fx.Node) and len(source.users) > 1:
            continue  # others see what it writes
        conv = _module(source, modules, nn.Conv2d)
        with graph.inserting_before(last):
            if conv is not None and isinstance(source, fx.Node) and len(source.users) == 1:
                weights = graph.create_node("get_attr", str(source.target))
                new = graph.call_function(conv_pool_relu, (weights, source.args[0]))
            else:
                source = None
                new = graph.call_function(max_pool_relu, (first.args[0],))
        last.replace_all_uses_with(new)
        for node in (last, first, source):
            if isinstance(node, fx.Node):
                graph.erase_node(node)
        fused += 1
    return fused


def _module(node: Any, modules: dict[str, nn.Module], kind: type) -> Any:
    """The module that the node calls with one argument, if its type is exactly ``kind``."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1:
        return None
    module = modules.get(str(node.target))
    return module if type(module) is kind and not node.kwargs else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    if node.op == "call_function":
        return node.target in _RELUS
    return _module(node, modules, nn.ReLU) is not None


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a ReLU writes to its argument."""
    relu = _module(node, modules, nn.ReLU)
    return (
        node.target in ("relu_", F.relu_, torch.relu_)
        or any(value is True for value in (*node.args[1:], node.kwargs.get("inplace")))
        or (relu is not None and relu.inplace)
    )


def _is_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether it is max_pool2d(x, 2)."""
    if node.op == "call_function" and node.target in _POOLS:
        named = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
                         node.args[1:], strict=False))  # fmt: skip
        settings = {**named, **node.kwargs}
    else:
        pool = _module(node, modules, nn.MaxPool2d)
        if pool is None:
            return False
        settings = {name: getattr(pool, name) for name in pool.__constants__}
    two = (2, (2, 2), [2, 2])
    plain = {"padding": (0, (0, 0), [0, 0]), "dilation": (1, (1, 1), [1, 1])}
    return (
        settings.pop("kernel_size", None) in two
        and settings.pop("stride", None) in (None, [], *two)
        and all(settings.pop(name, values[0]) in values for name, values in plain.items())
        and not any(settings.values())  # ceil_mode, return_indices
    )


# ---- flattening


def _reshape(graph: fx.Graph) -> int:
    """Replace ``view`` by ``reshape``, which takes channels_last images too."""
    views = [
        node
        for node in graph.nodes
        if node.op == "call_method"
        and node.target == "view"
        and not any(isinstance(size, torch.dtype) for size in node.args)
        and not node.kwargs
        and not any(_writes(user) for user in node.users)
    ]
    for node in views:
        node.target = "reshape"
    return len(views)


def _writes(node: fx.Node) -> bool:
    """Whether the node may write to its argument: a copy by ``reshape`` would lose the write."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.target in (operator.setitem, operator.iadd, operator.imul, operator.isub)
