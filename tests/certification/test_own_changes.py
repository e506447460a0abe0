"""A classifier whose network changes behind its back, is copied or pickled; images by mistake."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import drf_fast
from drf_fast.certification.votes import NoisyVotes

X = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    return nn.Sequential(*layers).eval()


def classifier(net: nn.Module, precision: str) -> drf_fast.SmoothedClassifier:
    return drf_fast.SmoothedClassifier(net, 4, 0.5, precision=precision, memory_format="contiguous")


def counts(smoothed: drf_fast.SmoothedClassifier) -> torch.Tensor:
    return smoothed.certify_batch(X, 8, 300, 0.01, 64, image_ids=IDS).count


def fused_step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=3.0, fused=True)
    net(torch.rand(4, 1, 6, 6)).square().mean().backward()
    optimizer.step()


def scaled_in_place(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data.mul_(torch.linspace(-1, 1, parameter.shape[-1]))


def from_a_vector(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    size = sum(parameter.numel() for parameter in net.parameters())
    nn.utils.vector_to_parameters(torch.randn(size, generator=generator) / 4, net.parameters())


def statistics(net: nn.Module) -> None:
    net[1].running_mean.data.add_(1.0)  # type: ignore[index]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [fused_step, scaled_in_place, from_a_vector, statistics])
def test_weights_that_change_unseen_by_autograd_are_followed(
    precision: str, change: Callable[[nn.Module], None]
) -> None:
    net = network()
    smoothed = classifier(net, precision)
    before = counts(smoothed)
    change(net)
    fresh = counts(classifier(copy.deepcopy(net), precision))
    assert not torch.equal(before, fresh)  # the change shows
    assert torch.equal(counts(smoothed), fresh)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_certifies_the_same_and_follows_its_own_network(precision, copied, used):
    net = network()
    smoothed = classifier(net, precision)
    if used:
        counts(smoothed)
    other = copied(smoothed)
    assert torch.equal(counts(other), counts(smoothed))
    from_a_vector(other.base)
    assert torch.equal(counts(other), counts(classifier(copy.deepcopy(other.base), precision)))
    assert torch.equal(counts(smoothed), counts(classifier(network(), precision)))


def test_a_batch_size_of_our_choice_fits_memory(monkeypatch):
    tried = []

    def rate(self: NoisyVotes, x: torch.Tensor, size: int) -> float:
        tried.append(size)
        if size > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 7 bytes")
        return 1.0 + size

    monkeypatch.setattr(NoisyVotes, "rate", rate)
    most = 128
    assert classifier(network(), "fp32").batch_size(X[:1]) == 128
    assert tried == [64, 128, 256]
    most = 5
    assert classifier(network(), "fp32").batch_size(X[:1]) == 4
    most = 0
    with pytest.raises(RuntimeError, match="allocate memory"):
        classifier(network(), "fp32").batch_size(X[:1])


def test_an_attack_leaves_inference_mode():
    options = {"sigma": 0.5, "num_samples": 2, "steps": 3, "ball": drf_fast.HardBall(1.0)}
    noise = {"seed": 3, "image_ids": IDS}
    net, target = network(), torch.tensor([0, 3])
    expected = drf_fast.attack(net, X, target, **options, **noise)
    with torch.inference_mode():
        got = drf_fast.attack(net, X, target, **options, **noise)
        inside = drf_fast.attack(net, X.clone(), target.clone(), **options, **noise)
    for result in (got, inside):
        assert torch.equal(result.x, expected.x) and torch.equal(result.noisy, expected.noisy)


def test_8_bit_images_are_told_to_be_divided():
    levels = (X * 255).byte()
    with pytest.raises(TypeError, match=r"got torch.uint8; convert .*x\.float\(\) / 255$"):
        drf_fast.noisy_repeat(levels, 0.5, 2)
    with pytest.raises(TypeError, match=r"x\.float\(\) / 255$"):
        classifier(network(), "fp32").certify(levels[0], 8, 8, 0.01)
    with pytest.warns(UserWarning, match="images hold values from"):
        classifier(network(), "fp32").certify(255 * X[0], 8, 8, 0.01)


def test_threads_that_share_a_classifier_wait_for_each_other():
    inside, most = [0], [0]

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))  # nothing to fuse: no copy

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1
            assert not self.training
            return self.net(x)

    smoothed = classifier(Slow().train(), "fp32")
    expected = counts(smoothed)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: counts(smoothed), range(4)))
    assert most == [1] and all(torch.equal(one, expected) for one in found)


def test_a_classifier_leaves_the_network_in_eval_mode_for_another_one_that_still_runs_it():
    begun, joined = threading.Event(), threading.Event()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(36, 4)  # nothing to fuse: no copy

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self is net:  # and no copy that is made to find its form
                wait()
                modes.add((self.training, self.last.weight.requires_grad))
            return self.last(x.flatten(1))

    def wait() -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert joined.wait(60)
        elif not joined.is_set():
            joined.set()
            results.append(first.result(60))

    modes: set[tuple[bool, bool]] = set()
    results: list[torch.Tensor] = []
    net = Net().train()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(counts, classifier(net, "fp32"))
        assert begun.wait(60)
        results.append(counts(classifier(net, "fp32")))  # begins after the first, ends after it
    assert torch.equal(*results) and modes == {(False, False)}
    assert net.training and net.last.training and net.last.weight.requires_grad
