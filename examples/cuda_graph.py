"""Run a whole DRF training step, from attack to optimizer, as one CUDA graph: no launch overhead.

    python examples/cuda_graph.py

A graph replays exactly what was captured. So everything that changes between steps must be a
tensor on the GPU, which the step reads and this program changes in place: the batch and its ids,
the noise key, sigma, and lambda, which ``SoftBall.update`` changes inside the graph. A Python
number (or a CPU tensor) would become a constant, and every replay would use the same noise;
drf_fast refuses to capture one.
"""

from __future__ import annotations

import torch
from torch import nn

import drf_fast


def scalar(value: float, device: torch.device) -> torch.Tensor:
    """A number that a graph reads from memory."""
    return torch.full((), value, dtype=torch.float64, device=device)


class DRFStep:
    """One training step on tensors that never move: change them, then call (or replay)."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ball: drf_fast.SoftBall,
        x: torch.Tensor,
        num_samples: int = 4,
        attack_steps: int = 4,
    ) -> None:
        self.model, self.optimizer, self.ball = model, optimizer, ball
        self.num_samples, self.attack_steps = num_samples, attack_steps
        self.x = torch.zeros_like(x)
        self.y = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        self.ids = torch.arange(x.shape[0], device=x.device)
        self.key = torch.zeros((), dtype=torch.int64, device=x.device)
        self.sigma = scalar(0.25, x.device)

    def load(self, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor, key: int) -> None:
        """Put the next batch and its noise key where the step reads them."""
        for target, source in ((self.x, x), (self.y, y), (self.ids, ids)):
            target.copy_(source, non_blocking=True)
        self.key.copy_(torch.tensor(key))

    def __call__(self) -> torch.Tensor:
        adversary = drf_fast.attack(
            self.model,
            self.x,
            self.y,
            sigma=self.sigma,
            num_samples=self.num_samples,
            steps=self.attack_steps,
            ball=self.ball,
            seed=self.key,
            image_ids=self.ids,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss = drf_fast.smooth_ce(self.model(adversary.noisy), self.y, self.num_samples)
        loss.backward()
        self.optimizer.step()
        self.ball.update(adversary.distance)
        return loss.detach()


def capture(step: DRFStep, warm_up: int = 3) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """The graph of one step, and the tensor where each replay leaves its loss.

    The steps that warm up train too, on the batch that is loaded: kernels compile, the optimizer
    makes its state, and the ball moves to the GPU, none of which a capture may contain.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = step()
    return graph, loss


def main(epochs: int = 1, batch_size: int = 256) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this example needs an NVIDIA GPU, torch sees none")
    from drf_fast.data import batches, load
    from drf_fast.models import LeNet

    device = torch.device("cuda")
    data = load("mnist-mini", "train")
    model = LeNet().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # epsilon, too, is a number that the GPU reads; the step size, 2 epsilon / T, follows it.
    ball = drf_fast.SoftBall(scalar(1.0, device))
    step = DRFStep(model, optimizer, ball, torch.empty(batch_size, 1, 28, 28, device=device))
    graph = loss = None
    number = 0
    for epoch in range(epochs):
        for x, y, ids in batches(data, batch_size, shuffle_seed=0, epoch=epoch, drop_last=True):
            step.load(x, y, ids, drf_fast.noise_key(0, number))
            step.sigma.fill_(0.5 * min(1.0, (number + 1) / 10))  # the first steps are easier
            if graph is None or loss is None:
                graph, loss = capture(step)
            graph.replay()
            number += 1
            if number % 10 == 0:  # printing waits for the GPU, replaying does not
                print(f"step {number}: loss {loss.item():.3f}, lambda {ball.lam.item():.3f}")


if __name__ == "__main__":
    main()
