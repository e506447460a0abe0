"""faster follows what is changed in the network, and changes nothing in it itself."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from networks import SHAPE, K, Views
from torch import nn

import drf_fast
from drf_fast.models import fusing, normalize
from drf_fast.models.faster import Faster

X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


class Pooled(nn.Module):
    """Convolution, activation and pooling, which are fused; subclasses use ``features``."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.act = nn.Conv2d(1, 4, 3), act or nn.ReLU()
        self.pool, self.fc = nn.MaxPool2d(2), nn.LazyLinear(K)
        self.register_parameter("gain", None)
        self.fc(self.features(X))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.act(self.conv(x))).flatten(1)

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.fc(self.features(x))
        return logits if self.gain is None else self.gain * logits


def both(network: nn.Module) -> tuple[nn.Module, Faster]:
    fast = Faster(copy.deepcopy(network).eval())
    assert fast.fused(X) is not None
    return network.eval(), fast


def assert_same(plain: nn.Module, fast: nn.Module) -> None:
    for got, expected in zip(*(net(X) if isinstance(net(X), tuple) else (net(X),)
                               for net in (fast, plain)), strict=True):  # fmt: skip
        torch.testing.assert_close(got, expected)


def test_a_module_or_a_parameter_that_is_put_in_is_used():
    plain, fast = both(Pooled())
    for network in (plain, fast):
        network.act = nn.SiLU()  # has the attributes of a ReLU
    assert_same(plain, fast)
    for network in (plain, fast):
        network.gain = nn.Parameter(torch.tensor(5.0))
    assert_same(plain, fast)


def test_a_relu_in_place_is_seen_in_the_other_outputs():
    class Two(Pooled):
        def forward(self, x: torch.Tensor) -> Any:
            h = self.conv(x)
            return self.fc(self.pool(self.act(h)).flatten(1)), h

    plain = Two(nn.ReLU(inplace=True)).eval()
    fast = drf_fast.faster(copy.deepcopy(plain), X)
    assert_same(plain, fast)
    assert bool((fast(X)[1] >= 0).all())


def test_what_the_code_keeps_between_passes_is_a_tensor():
    class Cached(Pooled):
        bias: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> Any:
            h = self.features(x)
            if self.bias is None:
                self.bias = h.mean().detach()
            return self.fc(h) + self.bias

    network = Cached().eval()
    fast = drf_fast.faster(network, X)
    fast(X)
    for again in (X, 2 * X):
        network.bias = None
        expected = network(again)
        network.bias = None
        torch.testing.assert_close(fast(again), expected)
        assert isinstance(network.bias, torch.Tensor)


def test_features_that_the_code_keeps_are_not_kept_longer():
    class Kept(Pooled):
        def forward(self, x: torch.Tensor) -> Any:
            self.kept = self.features(x)
            return self.fc(self.kept)

    network = Kept().eval()
    fast, seen = Faster(network, last=True), []
    for _ in range(5):
        fast(X)
        seen.append(weakref.ref(network.kept))
    assert [kept() is not None for kept in seen] == [False] * 4 + [True]


@pytest.mark.parametrize("own", [True, False])
def test_batch_normalisation_behind_a_normalize_is_folded(own):
    class Norms(Views):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1)

        def forward(self, x):
            return super().forward(self.norm(self.first(x)))

    class Scaled(nn.Module):
        mean: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.3]))

        def forward(self, x):
            return x - self.mean.view(-1, 1, 1)

    torch.manual_seed(3)
    network: Any = nn.Sequential(normalize.Normalize([0.3], [0.2]) if own else Scaled(), Norms())
    network.eval()[1].norm.running_var.fill_(0.3)
    folded = copy.deepcopy(network)
    run = fusing.rewritten(folded, fold=True)
    assert not torch.equal(folded[1].first.weight, network[1].first.weight)
    torch.testing.assert_close(run(folded, X), network(X))
    for net in (folded, network):  # the trace has not fixed what is computed from a buffer
        for buffer in net[0].buffers():
            buffer.fill_(0.7)
    torch.testing.assert_close(run(folded, X), network(X))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_other_outputs_are_float32_too(kind):
    class Several(Pooled):
        def forward(self, x: torch.Tensor) -> Any:
            h = self.features(x)
            return (self.fc(h), h) if kind is tuple else {"logits": self.fc(h), "features": h}

    network = drf_fast.faster(Several(), X, precision="bf16")
    assert network.bf16
    got = network(X)
    assert {part.dtype for part in (got if kind is tuple else got.values())} == {torch.float32}


def test_tied_buffers_and_parameters_may_be_untied():
    class Tied(Pooled):
        a: torch.Tensor
        b: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            shared = torch.tensor(2.0)
            self.register_buffer("a", shared)
            self.register_buffer("b", shared)
            self.g = nn.Parameter(torch.tensor(3.0))
            self.h = self.g

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(self.features(x) * self.a * self.g) * self.b * self.h

    plain, fast = both(Tied())
    for name, value in (("b", torch.tensor(5.0)), ("h", nn.Parameter(torch.tensor(7.0)))):
        for network in (plain, fast):
            setattr(network, name, value)
        assert_same(plain, fast)


class Collecting(Pooled):
    """Code that keeps what it sees in a list and a dict, counts, and has a branch to trace."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.calls, self.branch = 0, branch

    def forward(self, x: torch.Tensor) -> Any:
        h = self.features(x)
        self.calls += 1
        self.seen.append(h)
        self.cache.setdefault("scale", x.new_full((), 2.0))
        if self.branch and bool(h.sum() > 1e9):
            h = -h
        return self.cache["scale"] * self.fc(h)


@pytest.mark.parametrize("branch", [False, True])
def test_a_trace_leaves_nothing_in_containers_and_counters(branch):
    network, plain = Collecting(branch).eval(), Collecting(branch).eval()
    for one in (network, plain):
        one.seen.clear()
        one.cache.clear()
        one.calls = 0
    with pytest.raises(fusing.TracingError):
        fusing.rewritten(network)
    assert (network.calls, network.seen, network.cache) == (0, [], {})
    torch.testing.assert_close(network(X), plain(X))
    held = [weakref.ref(h) for h in network.seen]
    fast = Faster(network)
    for _ in range(12):
        fast(X)
        held.append(weakref.ref(network.seen[-1]))
        network.seen.clear()
    assert sum(h() is not None for h in held) <= 1


def test_a_constant_in_one_mode_leaves_the_other_fused():
    class Scaling(Pooled):
        def forward(self, x: torch.Tensor) -> Any:
            logits = super().forward(x)
            return logits * torch.tensor(0.9) if self.training else logits

    fast = Faster(Scaling())
    assert fast.eval().fused(X) is not None
    assert fast.train().fused(X) is None and fast.eval().fused(X) is not None


class Lazy(Pooled):
    """Code that makes containers, flags and numbers at its first pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.kept, self.last, self.ready = kind, None, torch.rand(3), False
        self.kept: Any

    def forward(self, x: torch.Tensor) -> Any:
        h = self.features(x)
        if self.kind == "flag":
            if not self.ready:
                self.scale, self.ready = x.new_full((), 2.0), True
            return self.scale * self.fc(h)
        if self.kind == "number":
            self.last = 0.0
        elif self.kept is None:
            made = x.new_full((), 2.0)
            self.kept = {"dict": {"scale": made}, "list": [made], "deep": {"a": [(made,)]}}[
                self.kind
            ]
        return self.fc(h)


@pytest.mark.parametrize("kind", ["flag", "number", "dict", "list", "deep"])
def test_what_a_trace_has_made_is_made_again(kind):
    network, plain = Lazy(kind).eval(), Lazy(kind).eval()
    for one in (network, plain):  # as before the first pass
        one.kept, one.last, one.ready = None, torch.rand(3), False
    fast = Faster(network)
    for _ in range(2):
        torch.testing.assert_close(fast(X), plain(X))
    torch.testing.assert_close(network(X), plain(X))
    assert "Proxy" not in repr(vars(network))
