"""A network's forward pass rewritten for our fused operations, where torch.fx can trace it.

What is traced is one run of the Python code: its ``if``s are decided, its constants fixed. So a
trace holds only while the attributes that the code could have read are what they were (``state``),
it is refused where tracing made a tensor or two traces differ, and whoever uses it compares it with
the network first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from drf_fast.ops.pooling import conv_pool_relu, max_pool_relu

Forward = Callable[[nn.Module, torch.Tensor], Any]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_POOLS = (F.max_pool2d, torch.max_pool2d)


class TracingError(Exception):
    """The network's code cannot be traced, or nothing is gained by it."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_compiled(m) or super().is_leaf_module(m, module_qualified_name)


def is_compiled(network: nn.Module) -> bool:
    """Whether there is no Python code to trace, or somebody else traces it."""
    return isinstance(network, torch.jit.ScriptModule) or hasattr(network, "_orig_mod")


def state(network: nn.Module) -> tuple[Any, ...]:
    """All that a trace of ``network`` rests on: modes, hooks and plain attributes of its modules.

    Raises:
        TracingError: a module has hooks, which a trace would run at the wrong time or not at all.
    """
    values: list[Any] = []
    for module in network.modules():
        content = module.__dict__
        if any(content.get(name) for name in _HOOKS):
            raise TracingError("it has hooks")
        values.append(tuple(v for v in content.values() if type(v) in _PLAIN))
    return tuple(values)


def rewritten(network: nn.Module, *, fold: bool = False) -> Forward:
    """``forward(network, x)`` with pooling and ReLU in one pass, and without ``view``.

    Args:
        network: in the mode in which it will be run. It stays as it is but for ``fold``.
        fold: put batch normalisation into the convolutions before it, which **changes** the
            network's convolutions: for a copy in eval mode.

    Raises:
        TracingError: see above.
    """
    if isinstance(network, fx.GraphModule) or is_compiled(network):
        raise TracingError("it is compiled")
    graph = _traced(network)
    modules = dict(network.named_modules())
    changes = _fold(graph, modules) if fold else 0
    changes += _pool(graph, modules) + _reshape(graph)
    if not changes:
        raise TracingError("there is nothing to fuse")
    graph.lint()
    # The function alone: called with the network itself, it finds all weights where they are now.
    return type(fx.GraphModule(network, graph)).forward


def _traced(network: nn.Module) -> fx.Graph:
    try:
        before = state(network)
        tracer = _Tracer()
        graphs = [tracer.trace(network), _Tracer().trace(network)]
        same = state(network) == before
    except TracingError:
        raise
    except Exception as error:  # whatever code does when its input is a proxy
        raise TracingError(f"{type(error).__name__} while tracing") from error
    finally:
        for name in [name for name in vars(network) if name.startswith("_tensor_constant")]:
            delattr(network, name)
    graph = graphs[0]
    if not same or str(graph) != str(graphs[1]):
        raise TracingError("its code does something else every time")
    if any(n.op == "get_attr" and "_tensor_constant" in str(n.target) for n in graph.nodes):
        raise TracingError("its code makes tensors")
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
        once = len(source.users) == 1 and _calls(graph, source.target) == 1
        if not once or norm.training or norm.running_mean is None or norm.running_var is None:
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
    """The module that the node calls with one argument, if it is of this very type."""
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


def _is_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether it is max_pool2d(x, 2)."""
    if node.op == "call_function" and node.target in _POOLS:
        named = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
                         node.args[1:], strict=False))  # fmt: skip
        given = {**named, **node.kwargs}
    else:
        pool = _module(node, modules, nn.MaxPool2d)
        if pool is None:
            return False
        given = {name: getattr(pool, name) for name in pool.__constants__}
    two = (2, (2, 2), [2, 2])
    plain = {"padding": (0, (0, 0), [0, 0]), "dilation": (1, (1, 1), [1, 1])}
    return (
        given.pop("kernel_size", None) in two
        and given.pop("stride", None) in (None, [], *two)
        and all(given.pop(name, values[0]) in values for name, values in plain.items())
        and not any(given.values())  # ceil_mode, return_indices
    )


# ---- flattening


def _reshape(graph: fx.Graph) -> int:
    """``view`` becomes ``reshape``, the same values for images in channels_last order too."""
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
    """Whether the node may write into its argument, which a copy would not pass on."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.target in (operator.setitem, operator.iadd, operator.imul, operator.isub)
