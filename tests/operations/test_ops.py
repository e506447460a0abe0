"""The raw operations: schemas and fakes (opcheck), torch.compile, autocast, checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from values import scalar

import drf_fast
from drf_fast.ops import schemas

OPERATIONS = tuple(schemas._SCHEMAS)


KEY, IDS, OFFSET = torch.tensor(5), torch.tensor([3, 1]), torch.tensor(2)
TARGET = torch.tensor([0, 2])


def image(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def sliced(*shape: int) -> torch.Tensor:
    """A slice of a channels_last tensor: neither contiguous nor channels_last."""
    return image(*shape[:-1], 2 * shape[-1], last=True)[..., ::2]


def levels(x: torch.Tensor) -> torch.Tensor:
    return (x * 50 + 128).clamp(0, 255).to(torch.uint8)


def logits(dtype: torch.dtype = torch.float32, sample_major: bool = False) -> torch.Tensor:
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return z.transpose(0, 1).contiguous().transpose(0, 1) if sample_major else z


def step(grad: torch.Tensor, x: torch.Tensor, ball: str, norm: str, clamp: Any) -> tuple[Any, ...]:
    scalars = (scalar(0.1), scalar(1.0), scalar(0.5), scalar(0.25))
    return grad, x, x.clone(), *scalars, KEY, IDS, ball, norm, clamp


CASES: list[tuple[str, tuple[Any, ...]]] = [
    *[
        ("noisy_repeat", (x, scalar(0.5), KEY, IDS, OFFSET, 3, "train"))
        for x in (
            image(2, 5),
            image(2, 3, 4, 4, last=True),
            image(2, 1, 4, 4, last=True),
            image(2, 3, 4, 4, dtype=torch.bfloat16),
            sliced(2, 3, 4, 4),
            image(2, 4, 5).transpose(1, 2),
        )
    ],
    *[
        ("noisy_levels", (u, 0.5, KEY, IDS, OFFSET, 3, "train", dtype))
        for u, dtype in (
            (levels(image(2, 5)), torch.float32),
            (levels(image(2, 3, 4, 4, last=True)), torch.bfloat16),
            (levels(sliced(2, 3, 4, 4)), torch.float16),
        )
    ],
    *[
        ("noisy_repeat_backward", (grad, 3))
        for grad in (
            image(6, 5),
            image(6, 3, 4, 4, last=True),
            sliced(6, 3, 4, 4),
            torch.ones(()).expand(6, 3, 4, 4),
        )
    ],
    *[
        ("smooth_ce", (z, TARGET, reduction, need_grad))
        for z, reduction, need_grad in (
            (logits(), "mean", True),
            (logits(torch.float16), "none", True),
            (logits(torch.float64, sample_major=True), "sum", True),
            (logits(), "none", False),
        )
    ],
    *[
        ("consistency_loss", (z, TARGET, scalar(2.0), scalar(0.5), reduction, need_grad))
        for z, reduction, need_grad in (
            (logits(), "mean", True),
            (logits(torch.bfloat16, sample_major=True), "none", True),
            (logits(), "sum", False),
        )
    ],
    *[
        ("macer_loss", (z, TARGET, scalar(0.5), scalar(2.0), scalar(8.0), scalar(16.0), need_grad))
        for z, need_grad in ((logits(), True), (logits(torch.float64), False))
    ],
    *[
        ("adversary_step", step(grad, x, ball, norm, clamp))
        for grad, x, ball, norm, clamp in (
            (image(6, 5), image(2, 5), "hard", "image", [0.0, 1.0]),
            (image(6, 3, 4, 4, last=True), image(2, 3, 4, 4, last=True), "prox", "batch", None),
            (image(6, 3, 4, 4), sliced(2, 3, 4, 4), "excess", "none", [0.0, 1.0]),
            (image(6, 3, 4, 4), sliced(2, 3, 4, 4), "udr", "image", [0.0, 1.0]),
            (
                image(6, 5, dtype=torch.float16),
                image(2, 5, dtype=torch.float16),
                "none",
                "none",
                None,
            ),
        )
    ],
    ("vote", (image(6, 4), torch.zeros(2, 4, dtype=torch.int64))),
    ("clopper_pearson_lower", (torch.tensor([3, 9]), torch.tensor([10, 10]), scalar(0.01))),
    (
        "certified_radius",
        (torch.tensor([3, 9]), torch.tensor([10, 10]), scalar(0.5), scalar(0.01)),
    ),
]


@pytest.mark.parametrize(
    "name, arguments", CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)]
)
def test_schema_fake_and_tracing_agree_with_what_runs(backend, name, arguments):
    operation = getattr(torch.ops.drf_fast, name).default
    torch.library.opcheck(operation, arguments)


def test_every_raw_operation_is_covered_above():
    pooling = {"max_pool_relu", "max_pool_relu_backward", "pooled_image_gradient"}
    assert {name for name, _ in CASES} == set(schemas._SCHEMAS) - pooling  # test_max_pool_relu.py


# -------------------------------------------------------------------- with the rest of torch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def train_step(
    model: nn.Module, x: torch.Tensor, sigma: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    noisy = drf_fast.noisy_repeat(x, sigma, 3, seed=key, image_ids=IDS)
    return drf_fast.smooth_ce(model(noisy), TARGET, 3)


def gradients(function: Any, *arguments: Any) -> list[torch.Tensor]:
    model = Net()
    x = image(2, 3, 4).requires_grad_()
    loss = function(model, x, *arguments)
    loss.backward()
    assert x.grad is not None
    return [loss.detach(), x.grad, *[p.grad for p in model.parameters() if p.grad is not None]]


def test_compiled_is_eager_and_changing_numbers_neither_recompile_nor_stick(backend):
    torch._dynamo.reset()
    compiled = torch.compile(train_step, fullgraph=True, backend="aot_eager")
    model = Net()
    weights = list(model.parameters())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number_of_step in range(3):
            key = torch.tensor(drf_fast.noise_key(1, number_of_step))
            sigma = torch.tensor(0.25 * (number_of_step + 1))
            results = []
            for function in (train_step, compiled):
                x = image(2, 3, 4).requires_grad_()
                loss = function(model, x, sigma, key)
                results.append((loss.detach(), *torch.autograd.grad(loss, [x, *weights])))
            for eager, traced in zip(*results, strict=True):
                assert torch.equal(eager, traced)


def test_compiled_code_takes_python_numbers_that_change_and_draws_fresh_keys(backend):
    torch._dynamo.reset()
    x = image(2, 5)

    def noisy(sigma: float, seed: int | None) -> torch.Tensor:
        ids = None if seed is None else IDS
        return drf_fast.noisy_repeat(x, sigma, 3, seed=seed, image_ids=ids)

    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    for sigma in (0.25, 0.5, 0.75):
        assert torch.equal(compiled(sigma, 5), noisy(sigma, 5))
    assert not torch.equal(compiled(0.5, None), compiled(0.5, None))


def test_under_autocast_the_loss_is_float32_and_near(backend):
    exact = gradients(train_step, torch.tensor(0.5), KEY)

    def autocast_step(*arguments: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return train_step(*arguments)

    got = gradients(autocast_step, torch.tensor(0.5), KEY)
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max()) < 0.05 * float(b.abs().max())


def test_checkpointing_recomputes_the_same_noise(backend):
    def checkpointed(*arguments: Any) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(train_step, *arguments, use_reentrant=False)  # type: ignore[return-value]

    for a, b in zip(
        gradients(checkpointed, torch.tensor(0.5), KEY),
        gradients(train_step, torch.tensor(0.5), KEY),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_default_device_changes_nothing():
    x, ids = torch.rand(2, 3), torch.arange(2)
    logits, target = torch.randn(2, 2, 3), torch.tensor([0, 1])

    def results() -> list[torch.Tensor]:
        noisy = drf_fast.noisy_repeat(x, 0.5, 2, seed=1, image_ids=ids)
        step = drf_fast.adversary_step(
            noisy,
            x,
            x,
            step_size=0.5,
            ball=drf_fast.HardBall(1.0),
            sigma=0.5,
            seed=1,
            image_ids=ids,
        )
        loss = drf_fast.consistency_loss(logits, target, lam=1.0)
        return [noisy, *step, loss, drf_fast.certified_radius(990, 1000, sigma=0.5, alpha=0.001)]

    expected = results()
    torch.set_default_device("meta")
    try:
        got = results()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
