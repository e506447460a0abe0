"""What a trace of a network depends on, and what it leaves: the attributes of its modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from drf_fast.runtime.modules import has_hooks, has_own_forward

_SIMPLE_TYPES = (bool, int, float, complex, str, bytes, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_CONTAINERS = (dict, list, set)


class TracingError(Exception):
    """The network's code cannot be traced, or there is nothing to fuse."""


class UnstableError(TracingError):
    """A pass of the network changes what the next one depends on."""


def is_compiled(network: nn.Module) -> bool:
    """Whether it is a ScriptModule, without Python code to trace, or wrapped by torch.compile."""
    return isinstance(network, torch.jit.ScriptModule) or hasattr(network, "_orig_mod")


def state(network: nn.Module) -> tuple[Any, ...]:
    """All that a trace of ``network`` depends on: the attributes of its modules, modes among them.

    Containers and objects count by their content, at any depth; tensors, modules, functions and
    what has no attributes, by identity; children, parameters and buffers by name, and by which of
    them are one, children by type, too.

    Raises:
        TracingError: a module has hooks, which a fused pass would skip or run at the wrong time, or
            a forward of its own, which it would skip.
    """
    values: list[Any] = []
    first: dict[int, int] = {}  # of each module and tensor, of which torch.fx knows one name
    for module in network.modules():
        if has_hooks(module):
            raise TracingError("it has hooks")
        if has_own_forward(module) and not is_compiled(module):
            raise TracingError("its forward was replaced")
        content = vars(module).items()
        # Not the values of children and parameters, which the fused pass reads from the network.
        names = tuple(
            (name, None if v is None else first.setdefault(id(v), len(first)))
            for part in _parts(module)
            for name, v in part.items()
        )
        attributes = tuple(_content(v) for name, v in content if name not in _OF_EVERY_MODULE)
        values.append((type(module), names, attributes))
    return tuple(values)


def _parts(module: nn.Module) -> list[dict[str, Any]]:
    """Children, parameters and buffers by name; none of a ScriptModule, which has no such dicts."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [module._modules, module._parameters, module._buffers]  # type: ignore[list-item]


@dataclasses.dataclass(frozen=True)
class _Same:
    """An object by its identity; held, so that no other takes its place in memory."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """What is compared of an attribute: hashable, and equal only if nothing in it has changed.

    ``inside`` are the ids of the objects around it, which it may contain.
    """
    kind = type(value)
    if kind in _SIMPLE_TYPES:
        return kind, value
    if kind is tuple and all(type(element) in _SIMPLE_TYPES for element in value):
        return value  # as most of torch's own, such as (stride, stride)
    if id(value) in inside or isinstance(value, (torch.Tensor, nn.Module, type)):
        return _Same(value)
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return kind, tuple((_content(k, inside), _content(v, inside)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(_content(element, inside) for element in value)
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(_content(element, inside) for element in value)
    if callable(value) or not hasattr(value, "__dict__"):
        return _Same(value)
    return _Same(value), _content(vars(value), inside)


class Attributes:
    """The attributes of a module before a trace, and the content of containers in them."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = _parts(module)[1:]
        self._content: list[tuple[Any, Any]] = []  # containers and their copies
        todo, seen = [vars(module)], set()
        while todo:
            container = todo.pop()
            if id(container) not in seen:
                seen.add(id(container))
                self._content.append((container, _copied(container)))
                todo += [value for value in _values(container) if isinstance(value, _CONTAINERS)]

    def has_other_tensors(self) -> bool:
        """Whether the name of a parameter or buffer is new, gone, or that of another one."""
        copies = {id(container): copy for container, copy in self._content}
        return any(
            part.keys() != copies[id(part)].keys()
            or any(value is not copies[id(part)][name] for name, value in part.items())
            for part in self._tensors
        )

    def restore(self) -> bool:
        """Take back what a trace has left: each fx.Proxy, what was set with it, counts, constants.

        Nothing else, above all not the mode: other threads may have set it.

        Returns:
            Whether the code itself has left something.
        """
        left = _is_traced(self._content[0][0], set())
        for container, copy in self._content:
            if left:
                _reset(container, copy)
            elif isinstance(container, dict):
                left = _reset_numbers(container, copy) or left
        return left


def _reset(container: Any, copy: Any) -> None:
    """The content of the copy, except the mode of a module."""
    if not isinstance(container, dict):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(copy)
        return
    for name in [name for name in container if name not in copy]:
        del container[name]
    container.update({name: value for name, value in copy.items() if name != "training"})


def _reset_numbers(values: dict[Any, Any], copy: dict[Any, Any]) -> bool:
    """Reset numbers that have changed, whether there are any, and constants of torch.fx."""
    changed = False
    for name, value in list(values.items()):
        old = copy.get(name)
        constant = str(name).startswith("_tensor_constant") and name not in copy
        number = type(value) in (int, float) and value is not old
        number = number and (type(old) is not type(value) or value != old)
        if constant or (number and name not in copy):
            del values[name]
        elif number:
            values[name] = old
        changed = changed or number
    return changed


def _copied(container: Any) -> Any:
    return next(kind(container) for kind in _CONTAINERS if isinstance(container, kind))


def _values(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _is_traced(value: Any, seen: set[int]) -> bool:
    """Whether it is an fx.Proxy or a container with one, at any depth."""
    if isinstance(value, fx.Proxy):
        return True
    if not isinstance(value, (*_CONTAINERS, tuple)) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_is_traced(element, seen) for element in _values(value))
