"""CUDA graphs on a GPU: replays, captures that fail, steps and copies that wait for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_step import CLASSES, B, M, example, small_network
from torch import nn

import drf_fast
from drf_fast.backends.graphs import captured
from drf_fast.certification import passes
from drf_fast.runtime import machine

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch) -> None:
    monkeypatch.delenv("DRF_FAST_DEBUG", raising=False)  # which reads values


def gpu_step(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = small_network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ball = drf_fast.SoftBall(example.scalar(0.5, torch.device("cuda")), kappa=8, lambda_every=1)
    return example.DRFStep(model, optimizer, ball, torch.empty(8, 3, 8, 8, device="cuda"))


def test_replays_follow_their_numbers_as_eager_steps_do():
    generator = torch.Generator().manual_seed(3)
    eager, graphed = gpu_step(), gpu_step()
    x = torch.rand(8, 3, 8, 8, generator=generator)
    y = torch.randint(CLASSES, (8,), generator=generator)
    for step in (eager, graphed):
        step.load(x, y, torch.arange(8), 1)
    for _ in range(2):
        eager()
    graph, loss = example.capture(graphed, warm_up=2)
    seen = []
    for number in range(20):
        x = torch.rand(8, 3, 8, 8, generator=generator)
        ids = torch.randperm(100, generator=generator)[:8]
        for step in (eager, graphed):
            step.load(x, y, ids, drf_fast.noise_key(7, number))
            step.sigma.fill_(0.1 + 0.02 * number)
            step.ball.epsilon.fill_(0.3 + 0.02 * number)
        expected = eager()
        graph.replay()
        assert torch.allclose(loss, expected, rtol=1e-4)
        assert torch.allclose(graphed.ball.lam, eager.ball.lam, rtol=1e-4)
        seen.append((float(loss), float(graphed.ball.lam)))
    assert len(set(seen)) == 20
    for a, b in zip(graphed.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_number_from_the_cpu_cannot_be_captured():
    x, graph = torch.rand(B, 3, 8, 8, device="cuda"), torch.cuda.CUDAGraph()
    drf_fast.noisy_repeat(x, 0.5, M)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="graph is being captured"):
        drf_fast.noisy_repeat(x, 0.5, M)


def test_a_training_step_never_waits_for_the_gpu():
    step = gpu_step()
    x, y = torch.rand(8, 3, 8, 8, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
    step.x.copy_(x)
    step.y.copy_(y)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_reach_the_gpu_without_waiting_for_it():
    x, device = torch.rand(64, 1, 28, 28), torch.device("cuda")
    machine.moved(x, device)  # allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = machine.moved(x, device)
        with pytest.raises(RuntimeError):
            x.to(device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), x)


def test_a_capture_that_fails_leaves_the_stream_and_the_next_capture_as_they_were():
    x, before = torch.rand(8, device="cuda"), torch.cuda.current_stream()
    y = 2 * x
    with pytest.raises(RuntimeError), captured(torch.cuda.CUDAGraph(), x.device):
        float(x.sum())
    assert torch.cuda.current_stream() == before
    graph = torch.cuda.CUDAGraph()
    with captured(graph, x.device):
        torch.mul(x, 3, out=y)
    graph.replay()
    assert torch.equal(y, 3 * x)


@pytest.mark.parametrize("sound", [False, True])
def test_certificates_from_graphs_are_those_of_passes_that_ran(monkeypatch, sound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)).cuda()
    x = (torch.randint(256, (8, 3, 8, 8)) / 255).cuda()  # a GPU would multiply by 1/255

    def certificates() -> list[Any]:
        # One precision: the fastest one varies between measurements, and rounds differently.
        form: dict[str, Any] = {"precision": "fp32", "memory_format": "contiguous"}
        smoothed = drf_fast.SmoothedClassifier(model, CLASSES, 0.5, seed=1, sound=sound, **form)
        found = [smoothed.certify(image, 16, 256, 0.01, 64) for image in x]
        assert smoothed.left_out == {}
        return found

    graphed = certificates()
    monkeypatch.setattr(passes, "_DEVICES", ())
    assert graphed == certificates()
