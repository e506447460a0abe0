"""faster stands for the network itself: its code, attributes, modes and gradients."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import types
from typing import Any

import pytest
import torch
from networks import SHAPE, K, Views
from torch import nn
from torch.nn import functional as F

import drf_fast
from drf_fast.errors import RunError
from drf_fast.models import fusing
from drf_fast.models.faster import Faster, _fastest, place

X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def made(kind: type[nn.Module]) -> Any:
    torch.manual_seed(3)
    return kind()


def faster(network: nn.Module) -> Any:
    found = _fastest(network, X, "channels_last")[0]
    assert isinstance(found, Faster)
    return found


class Named(Views):
    """Names that ``Faster`` has itself, an attribute that changes, a part always in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.bf16, self.network = nn.Linear(K, K), nn.Identity(), nn.Dropout(0.5)
        self.scale = 1.0

    def forward(self, x):
        return self.scale * self.network(self.last(super().forward(x)))

    def train(self, mode=True):
        super().train(mode)
        self.network.eval()
        return self

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


@pytest.mark.parametrize("again", [lambda net: net, copy.deepcopy,
                                   lambda net: pickle.loads(pickle.dumps(net))])  # fmt: skip
def test_names_attributes_and_modes_are_those_of_the_network(again):
    plain, fast = made(Named).train(), again(faster(made(Named)))
    assert isinstance(fast.last, nn.Linear) and isinstance(fast.network, nn.Dropout)
    fast.train()
    assert fast.training and fast.last.training and not fast.network.training
    torch.testing.assert_close(fast(X), plain(X))
    fast.scale = plain.scale = 3.0
    torch.testing.assert_close(fast(X), plain(X))
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict({**plain.state_dict(), "_extra_state": {"scale": 5.0}})
    assert fast.scale == 5.0 and not fast.eval().last.training


def test_the_choices_are_attributes():
    fast = faster(made(Views))
    assert fast.last is True and fast.bf16 is False
    with pytest.raises(AttributeError, match="absent"):
        fast.absent  # noqa: B018


class Part(Views):
    """A factor through which no gradient is to flow."""

    def forward(self, x):
        with torch.no_grad():
            factor = 1 + F.relu(self.c1(x)).mean((1, 2, 3))
        return super().forward(x) * factor[:, None]


class Decorated(Views):
    """The same with a decorator."""

    @torch.no_grad()
    def factor(self, x):
        return 1 + F.relu(self.c1(x)).mean((1, 2, 3))

    def forward(self, x):
        return super().forward(x) * self.factor(x)[:, None]


class Whole(Views):
    """A part that is exempt from autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = F.max_pool2d(F.relu(self.c1(x)), 2)
        return self.fc(F.relu(F.max_pool2d(self.c2(x), 2)).view(-1, 32))


@pytest.mark.parametrize("kind", [Part, Decorated, Whole])
@pytest.mark.parametrize("autocast", [False, True])
def test_switched_gradients_and_autocast_stay_switched(kind, autocast):
    found = []
    # Contiguous, so that the convolutions are the same and only what is switched differs.
    for network in (made(kind), _fastest(made(kind), X, "contiguous")[0]):
        # Autocast's cache in torch 2.6 keeps weights that were cast without gradients.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            logits = network(X).float()
        grads = torch.autograd.grad(logits.square().sum(), [*network.parameters()])
        found.append([logits, *grads])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


class Probe(nn.Module):
    """A layer on the features of a frozen network."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, K)

    def forward(self, x):
        with torch.no_grad():
            h = F.relu(self.features(x)).mean((2, 3))
        return self.last(h)


def test_a_network_that_passes_no_gradient_to_the_images_is_trained():
    torch.manual_seed(0)
    plain = Probe()
    fast = drf_fast.faster(copy.deepcopy(plain), X)
    for network in (plain, fast):
        network(X).square().sum().backward()
    torch.testing.assert_close(fast.last.weight.grad, plain.last.weight.grad, rtol=1e-4, atol=1e-5)
    assert fast.features.weight.grad is None


class Read(Views):
    """Code that reads a buffer's value."""

    temperature: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x):
        return super().forward(x) / float(self.temperature)


class Plain(Views):
    """Code that reads the value of a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.ones(())

    def forward(self, x):
        return super().forward(x) / self.temperature.item()


class Branch(Views):
    """Code that branches on a buffer's value."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x):
        return super().forward(x) * (1 if self.temperature == 1 else 7)


@pytest.mark.parametrize("kind", [Read, Plain, Branch])
def test_values_of_tensors_are_read_in_each_pass(kind):
    plain, fast = made(kind), faster(made(kind))
    torch.testing.assert_close(fast(X), plain(X))
    for network in (plain, fast):
        network.temperature.fill_(4.0)
    torch.testing.assert_close(fast(X), plain(X))


class Counting(Views):
    """Code that writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_passes_are_counted():
    fast = faster(made(Counting))
    before = float(fast.calls)
    for network in (fast, fast, fast.eval()):
        network(X)
    assert float(fast.calls) == before + 3


def test_a_forward_that_was_replaced_runs():
    network = made(Views)
    fast = faster(network)
    network.forward = lambda x: torch.zeros(len(x), K)
    assert not fast(X).any()
    del network.forward
    fast.forward = lambda x: torch.ones(len(x), K)
    assert bool(fast(X).all())


class InPlace(nn.Module):
    """What fusing ReLU and pooling must not change shows in images that are not black only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, bias=False), nn.Linear(100, K)

    def forward(self, x):
        h = self.conv(x)
        pooled = F.max_pool2d(torch.relu_(h), 2)
        return self.fc(pooled.flatten(1)) + h.mean((1, 2, 3))[:, None]


def test_the_command_line_compares_on_images_that_show_a_difference():
    plain = made(InPlace)
    placed = place(made(InPlace), torch.device("cpu"), "contiguous", "fp32", SHAPE, 4)
    torch.testing.assert_close(placed.network(X), plain(X))


class Large(Views):
    """A network for which the memory does not suffice."""

    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class LargeBackward(Views):
    """A network for whose backward pass the memory does not suffice."""

    def forward(self, x):
        if x.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(x)


@pytest.mark.parametrize("kind", [Large, LargeBackward])
def test_a_lack_of_memory_is_called_so(kind):
    with pytest.raises(RunError, match="expected memory for .* 4 rows .*; lower --batch-size"):
        place(made(kind), torch.device("cpu"), "auto", "fp32", SHAPE, 4)


class Flipping(Views):
    """Code of the training mode that a trace does not see: what it is given is no tensor."""

    def forward(self, x):
        return super().forward(x.flip(3) if self.training and isinstance(x, torch.Tensor) else x)


def test_training_code_that_a_trace_misses_runs():
    plain, fast = made(Flipping), faster(made(Flipping).eval())
    for training in (False, True):
        torch.testing.assert_close(fast.train(training)(X), plain.train(training)(X))


class Unpacking(Views):
    """Code that takes what is no tensor for a dictionary."""

    def forward(self, x):
        return super().forward(x if isinstance(x, torch.Tensor) else x["image"])


def test_a_traced_form_that_fails_is_left_out():
    network = made(Unpacking)
    torch.testing.assert_close(drf_fast.faster(network, X)(X), made(Unpacking)(X))


class Containers(Views):
    """Numbers in containers and in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.named = [1.0, 1.0], {"scale": (1.0, [1.0])}
        self.settings, self._hidden = types.SimpleNamespace(scale=1.0), 1.0
        self.settings.around = self.settings

    def forward(self, x):
        last = self.settings.around.scale * self._hidden
        return super().forward(x) * self.scales[1] * self.named["scale"][1][0] * last


def _list(net):
    net.scales[1] = 2.0


def _dict(net):
    net.named["scale"][1][0] = 2.0


def _object(net):
    net.settings.scale = 2.0


def _hidden(net):
    net._hidden = 2.0


@pytest.mark.parametrize("change", [_list, _dict, _object, _hidden])
def test_a_number_that_changed_in_a_container_is_read_anew(change):
    fast = faster(made(Containers))
    before = fast(X)
    assert fast.fused(X.contiguous(memory_format=torch.channels_last)) is not None
    change(fast)
    torch.testing.assert_close(fast(X), 2 * before)


class Meanwhile(Views):
    """While its code is traced, another thread starts; it is waited for at most so long."""

    task: Any = None
    seconds = 10.0

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            other = threading.Thread(target=type(self).task)
            other.start()
            other.join(type(self).seconds)
        return super().forward(x)


def test_other_threads_run_their_networks_during_a_trace(monkeypatch):
    other, found = made(Views), []
    monkeypatch.setattr(Meanwhile, "task", lambda: found.append(other(X)))
    faster(made(Meanwhile))
    assert found and all(torch.equal(logits, other(X)) for logits in found)


class Waiting(Views):
    """Its trace takes some time, longer than another that is already on its way."""

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            time.sleep(0.2)
        return super().forward(x)


def test_threads_trace_one_after_the_other(monkeypatch):
    found, call = [], nn.Module.__call__
    monkeypatch.setattr(Meanwhile, "task", lambda: found.append(fusing.rewritten(made(Waiting))))
    monkeypatch.setattr(Meanwhile, "seconds", 0.1)
    before = set(threading.enumerate())
    fusing.rewritten(made(Meanwhile))
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert len(found) == 2 and nn.Module.__call__ is call  # it was traced twice
