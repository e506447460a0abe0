"""torch.library.opcheck, all its tests, over the product of what a raw operation can be asked for.

test_ops.py checks dtypes and layouts one by one; here are the combinations: every reduction, ball,
norm and stream, with and without a gradient, sizes of 1, channels_last.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from values import scalar

from drf_fast import balls
from drf_fast.ops import schemas
from drf_fast.runtime.randomness import STREAMS

TESTS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
BALLS = ("none", *balls.BALLS)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KEY = torch.tensor(-7)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def check(name: str, *arguments: Any) -> None:
    operation = getattr(torch.ops.drf_fast, name).default
    report = torch.library.opcheck(operation, arguments)
    assert report == dict.fromkeys(TESTS, "SUCCESS")


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("reduction", schemas.REDUCTIONS)
@pytest.mark.parametrize("name, scalars", [("smooth_ce", 0), ("consistency_loss", 2)])
def test_losses(name, scalars, reduction, need_grad):
    target = torch.tensor([2, 0])
    weights = [scalar(0.5)] * scalars
    # Image-major; sample-major, which is a transposed view; one image of one sample.
    for logits in (random(2, 3, 4), random(3, 2, 4).transpose(0, 1), random(1, 1, 4)):
        check(name, logits, target[: len(logits)], *weights, reduction, need_grad)


@pytest.mark.parametrize("need_grad", [True, False])
def test_macer_loss(need_grad):
    numbers = [scalar(value) for value in (0.5, 2.0, 8.0, 16.0)]
    for logits in (random(3, 2, 4).transpose(0, 1), random(1, 1, 2).bfloat16()):
        check("macer_loss", logits, torch.tensor([1, 0])[: len(logits)], *numbers, need_grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ball", BALLS)
def test_adversary_step(ball, layout):
    x = random(2, 3, 4, 4).contiguous(memory_format=LAYOUTS[layout])
    numbers = [scalar(value) for value in (0.1, 1.0, 0.5, 0.25)]
    ids = torch.tensor([4, 2**32 - 1])
    for norm, clamp, samples in (("image", [0.0, 1.0], 3), ("batch", None, 1), ("none", None, 3)):
        grad = random(2 * samples, 3, 4, 4).contiguous(memory_format=LAYOUTS[layout])
        check("adversary_step", grad, x, x * 0.9, *numbers, KEY, ids, ball, norm, clamp)


def test_adversary_step_of_mixed_layouts():
    x, x_adv, grad = random(2, 3, 4, 4), random(2, 3, 4, 4), random(6, 3, 4, 4)
    numbers = [scalar(value) for value in (0.1, 1.0, 0.5, 0.25)]
    for which in range(3):
        tensors = [grad, x, x_adv]
        tensors[which] = tensors[which].contiguous(memory_format=torch.channels_last)
        check("adversary_step", *tensors, *numbers, KEY, torch.arange(2), "hard", "image", None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noisy_repeat_and_its_backward(layout):
    for stream, samples in zip(STREAMS, (1, 2, 3, 2), strict=True):
        x = random(2, 3, 4, 4).contiguous(memory_format=LAYOUTS[layout])
        offset = torch.tensor(2**32 - samples)
        check("noisy_repeat", x, scalar(0.5), KEY, torch.arange(2), offset, samples, stream)
        rows = random(2 * samples, 3, 4, 4).contiguous(memory_format=LAYOUTS[layout])
        check("noisy_repeat_backward", rows, samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 6, 4), (1, 1, 2, 2), (3, 1, 4, 8)], ids=str)
def test_pooling(shape, dtype):
    x = (random(*shape) - 0.5).to(dtype).contiguous(memory_format=torch.channels_last)
    for indexed in (False, True):
        check("max_pool_relu", x, indexed)
    out, index = schemas.max_pool_relu(x, True)
    check("max_pool_relu_backward", out, index)
    check("pooled_image_gradient", out, index, random(shape[1], 1, 3, 3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noisy_levels(layout, dtype):
    for stream, samples in zip(STREAMS, (1, 2, 3, 2), strict=True):
        u = (random(2, 3, 4, 4) * 256).to(torch.uint8).contiguous(memory_format=LAYOUTS[layout])
        offset = torch.tensor(2**32 - samples)
        names = (KEY, torch.arange(2), offset, samples, stream, dtype)
        check("noisy_levels", u, 0.5, *names)


def test_vote_and_bounds():
    for classes in (2, 5):
        check("vote", random(6, classes).half(), torch.zeros(3, classes, dtype=torch.int64))
        check("vote", random(classes, 6).T, torch.zeros(2, classes, dtype=torch.int64))
    for successes, trials in (
        (torch.tensor(90), torch.tensor(100)),
        (torch.tensor([[0, 1, 50], [51, 99, 100]]), torch.full((2, 3), 100)),
    ):
        check("clopper_pearson_lower", successes, trials, scalar(0.001))
        check("certified_radius", successes, trials, scalar(0.5), scalar(0.001))


def test_bounds_of_transposed_counts():
    successes = torch.tensor([[1, 2], [3, 4], [5, 6]]).t()
    trials = torch.full((3, 2), 9).t()
    check("clopper_pearson_lower", successes, trials, scalar(0.01))
    check("certified_radius", successes, trials, scalar(0.5), scalar(0.01))


def test_a_fake_that_lies_is_noticed():
    library = torch.library.Library("drf_fast_lies", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: 2 * x, "CompositeExplicitAutograd")
    torch.library.register_fake("drf_fast_lies::double", lambda x: x.new_empty(1), lib=library)
    with pytest.raises(Exception, match="(?i)shape|mismatch|match"):
        torch.library.opcheck(torch.ops.drf_fast_lies.double.default, (random(3),))
