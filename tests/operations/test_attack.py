"""attack: the whole loop against plain torch, its noise, and what it must leave untouched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import plain
import pytest
import torch
import torch.distributed
from torch import nn

import drf_fast

OPERATIONS = ("adversary_step", "noisy_repeat", "noisy_repeat_backward", "smooth_ce")
B, M, STEPS, SIGMA = 4, 3, 4, 0.25
IDS = torch.tensor([3, 1, 40, 7])


class Net(nn.Module):
    """Convolution, batch norm and dropout, so that eval mode matters; it records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 16, 5)
        self.inputs: list[torch.Tensor] = []
        self.modes: list[bool] = []
        self.fail_at: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.detach().clone())
        self.modes.append(any(module.training for module in self.modules()))
        if len(self.inputs) == self.fail_at:
            raise ZeroDivisionError("the network fails")
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().double()


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(B, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (B,), generator=generator)


def run(model: Any, ball: Any, **options: Any) -> drf_fast.AttackResult:
    x, target = case()
    defaults = {"sigma": SIGMA, "num_samples": M, "steps": STEPS, "seed": 5, "image_ids": IDS}
    return drf_fast.attack(model, x, target, ball=ball, **{**defaults, **options})


def plain_attack(
    model: nn.Module, ball: Any, step_size: float, grad_norm: str = "image"
) -> torch.Tensor:
    """The loop in plain torch and float64, under one fixed noise."""
    x, target = case()
    noise = drf_fast.noisy_repeat(torch.zeros_like(x), SIGMA, M, seed=5, image_ids=IDS)
    noise = noise.unflatten(0, (B, M))
    model.eval()
    found = plain.ascend(
        model, x, target, lambda x: x[:, None] + noise, STEPS, ball, step_size, grad_norm
    )
    model.train()
    return found


@pytest.mark.parametrize(
    "ball, step_size",
    [
        (drf_fast.HardBall(0.5), 0.25),
        (drf_fast.SoftBall(0.5, lambda0=0.4, form="prox"), 0.25),
        (None, 1.0),
    ],
    ids=["hard", "prox", "unbounded"],
)
def test_it_is_the_plain_loop_also_in_its_default_step_size(backend, model, ball, step_size):
    expected = plain_attack(model, ball, step_size)
    got = run(model, ball)  # 2 epsilon / T = 0.25, and 1 without a ball
    x, _ = case()
    assert torch.allclose(got.x, expected, rtol=0, atol=1e-12)
    true = (expected - x).flatten(1).norm(dim=1)
    assert float(true.min()) > 0.05  # it moved
    assert torch.allclose(got.distance, true, rtol=0, atol=1e-12)


def test_the_raw_gradient_is_that_of_the_sum_over_the_batch(backend, model):
    ball = drf_fast.HardBall(0.5)
    expected = plain_attack(model, ball, 3.0, "none")
    got = run(model, ball, step_size=3.0, grad_norm="none")
    assert torch.allclose(got.x, expected, rtol=0, atol=1e-12)


def test_it_raises_the_loss(backend, model):
    x, target = case()
    got = run(model, drf_fast.HardBall(0.5))
    model.eval()
    clean = drf_fast.noisy_repeat(x, SIGMA, M, seed=5, image_ids=IDS)
    assert drf_fast.smooth_ce(model(got.noisy), target, M) > drf_fast.smooth_ce(
        model(clean), target, M
    )


def test_every_step_and_the_training_batch_see_the_same_noise(backend, model):
    x, _ = case()
    got = run(model, drf_fast.HardBall(0.5))
    assert len(model.inputs) == STEPS
    noise = drf_fast.noisy_repeat(torch.zeros_like(x), SIGMA, M, seed=5, image_ids=IDS)
    for rows in [*model.inputs, got.noisy]:
        images = (rows - noise).reshape(B, M, *x.shape[1:])
        assert float((images - images[:, :1]).abs().max()) < 1e-15
    assert torch.equal(model.inputs[0], drf_fast.noisy_repeat(x, SIGMA, M, seed=5, image_ids=IDS))
    assert torch.equal(got.noisy, drf_fast.noisy_repeat(got.x, SIGMA, M, seed=5, image_ids=IDS))


def test_the_seed_reproduces_the_attack_and_manual_seed_governs_it_otherwise(backend, model):
    ball = drf_fast.HardBall(0.5)
    assert torch.equal(run(model, ball).noisy, run(model, ball).noisy)
    assert not torch.equal(run(model, ball).noisy, run(model, ball, seed=6).noisy)
    drawn = []
    for _ in range(2):
        torch.manual_seed(9)
        drawn += [run(model, ball, seed=None, image_ids=None).noisy for _ in range(2)]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("fail_at", [None, 1, 3])
def test_the_network_is_left_as_it_was_also_after_an_exception(backend, model, fail_at):
    model.train()
    model.norm.eval()  # a frozen batch norm, as in fine-tuning
    model.head.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    modes = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fail_at = fail_at
    if fail_at is None:
        run(model, drf_fast.HardBall(0.5))
    else:
        with pytest.raises(ZeroDivisionError, match="the network fails"):
            run(model, drf_fast.HardBall(0.5))
    assert not any(model.modes)  # eval mode inside, dropout and batch norm too
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool((model.conv.weight.grad == 1).all())
    assert model.head.weight.grad is None and model.norm.weight.grad is None


def test_an_image_that_requires_a_gradient_gets_none(backend, model):
    x, target = case()
    x.requires_grad_()
    got = drf_fast.attack(
        model, x, target, sigma=SIGMA, num_samples=M, steps=1, ball=drf_fast.HardBall(0.5)
    )
    assert x.grad is None and not got.x.requires_grad and not got.noisy.requires_grad


def test_it_works_under_no_grad_and_trains_from_its_batch(backend, model):
    _, target = case()
    with torch.no_grad():
        got = run(model, drf_fast.SoftBall(0.5, lambda0=0.4))
    loss = nn.functional.cross_entropy(model(got.noisy), target.repeat_interleave(M))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_plain_function_can_be_attacked(backend):
    weight = torch.randn(36, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = run(lambda rows: rows.flatten(1) @ weight, drf_fast.HardBall(0.5))
    assert torch.allclose(got.distance, torch.tensor(0.5, dtype=torch.float64), atol=0.1)


def test_a_network_under_autocast_can_be_attacked(backend, model):
    x, target = case()
    with torch.autocast("cpu", torch.bfloat16):
        got = drf_fast.attack(
            model.float(),
            x.float(),
            target,
            sigma=SIGMA,
            num_samples=M,
            steps=2,
            ball=drf_fast.HardBall(0.5),
        )
    assert got.x.dtype == got.noisy.dtype == torch.float32
    assert bool((got.distance > 0.05).all())


def test_a_pixel_beyond_the_range_by_a_rounding_is_the_end_of_the_range(backend, model):
    x, target = case()
    x = x.float()
    x[0, 0, 0, 0], x[1, 0, 2, 2] = -3e-8, 1 + 1e-7
    options: dict[str, Any] = {"sigma": SIGMA, "num_samples": M, "steps": 2, "seed": 5}
    options |= {"ball": drf_fast.HardBall(0.5), "image_ids": IDS}
    got = drf_fast.attack(model.float(), x, target, **options)
    expected = drf_fast.attack(model, x.clamp(0, 1), target, **options)
    assert torch.equal(got.x, expected.x) and torch.equal(got.distance, expected.distance)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.eye(5)[:B], ValueError, r"of one-hot labels pass target\.argmax\(1\)"),
        (torch.zeros(B), TypeError, r"int64 labels, got torch.float32; use target\.long\(\)"),
        (torch.zeros(B * M, dtype=torch.int64), ValueError, "not repeated for the noisy copies"),
    ],
)
def test_labels_are_checked_before_the_network_runs(model, labels, error, message):
    x, _ = case()
    with pytest.raises(error, match=message):
        drf_fast.attack(
            model, x, labels, sigma=SIGMA, num_samples=M, steps=1, ball=drf_fast.HardBall(0.5)
        )
    assert not model.inputs


def test_a_network_without_a_gradient_is_refused(model):
    with pytest.raises(ValueError, match=r"needs the gradient.*leave torch\.no_grad"):
        run(torch.no_grad()(model), drf_fast.HardBall(0.5))


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_network_is_refused_by_name(model, process_group):
    for wrapper in (nn.parallel.DistributedDataParallel, nn.DataParallel):
        with pytest.raises(ValueError, match=f"{wrapper.__name__}.*pass model.module"):
            run(wrapper(model), drf_fast.HardBall(0.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sigma": 127.5}, r"sigma 127\.5 .* at most 4; divide .* by 255 \(0\.5\)"),
        ({"sigma": torch.tensor(127.5)}, r"sigma 127\.5 .* at most 4; divide"),
        ({"ball": drf_fast.HardBall(255.0)}, r"epsilon 255 .* 6; .* by 256 \(0\.9961\)"),
        ({"ball": drf_fast.SoftBall(6.1, lambda0=0.4)}, r"epsilon 6\.1 .* diameter, 6; published"),
        ({"ball": drf_fast.HardBall(np.float64(255))}, r"epsilon 255 .* diameter, 6; pub"),
        ({"sigma": 4.0, "ball": drf_fast.HardBall(6.0)}, None),
        ({"ball": drf_fast.SoftBall(np.float64(0.5))}, None),
        ({"sigma": 100.0, "ball": drf_fast.HardBall(255.0), "clamp": (0, 255)}, None),
        ({"sigma": 127.5, "ball": drf_fast.HardBall(255.0), "clamp": None}, None),
    ],
)
def test_numbers_in_other_units_than_the_images_are_said(model, options, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, **{"ball": None, "steps": 1, **options})
    assert [str(warning.message) for warning in caught if said is None] == []
    if said is not None:
        (warning,) = caught
        assert re.search(said, str(warning.message)) and warning.filename == __file__


def test_a_wrapper_inside_a_network_is_refused_too(model, process_group):
    inside = nn.Sequential(nn.Identity(), nn.parallel.DistributedDataParallel(model))
    with pytest.raises(ValueError, match=r"a DistributedDataParallel inside \(1\), whose hooks"):
        run(inside, drf_fast.HardBall(0.5))


@pytest.mark.parametrize(
    "ball",
    [
        drf_fast.HardBall(0.5),
        drf_fast.SoftBall(0.5, lambda0=0.4, form="prox"),
        drf_fast.SoftBall(0.5, lambda0=0.4, form="excess"),
        drf_fast.SoftBall(0.5, lambda0=0.4, form="udr", tau=0.2),
        None,
    ],
    ids=["hard", "prox", "excess", "udr", "unbounded"],
)
def test_images_stay_in_their_range_and_another_range_may_be_given(backend, model, ball):
    x, target = case()
    wide = x * 4 - 2
    options = {"sigma": SIGMA, "num_samples": M, "steps": 3, "ball": ball, "step_size": 1.0}
    got = drf_fast.attack(model, wide, target, clamp=(-2, 2), **options)
    assert -2 <= float(got.x.min()) < -1 and 1 < float(got.x.max()) <= 2
    free = drf_fast.attack(model, wide, target, clamp=None, **options)
    assert bool(free.x.isfinite().all())


class InFloat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


@pytest.mark.parametrize("loss", [1e-2, 1e-5])
@pytest.mark.parametrize("last", [nn.Identity(), InFloat()], ids=["", "ends in float32"])
@pytest.mark.parametrize(
    "half_images, grad_norm", [(False, "image"), (False, "none"), (True, "image")]
)
def test_small_gradients_are_found_in_float16(loss, grad_norm, half_images, last):
    """An image that is classified right has a gradient far below the smallest float16."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), last)
    x, _ = case()
    x, target = x.float().half().float(), torch.zeros(B, dtype=torch.int64)
    with torch.no_grad():
        model[1].weight.mul_(0.1)
        model[1].bias[0] = -torch.log(torch.tensor(loss))
    options: Any = {"sigma": 0.1, "num_samples": 2, "steps": 1, "step_size": 0.5, "clamp": None,
                    "grad_norm": grad_norm, "ball": None, "seed": 5, "image_ids": IDS}  # fmt: skip
    if grad_norm == "none":
        options["step_size"] = 0.5 / loss
    expected = drf_fast.attack(model, x, target, **options)
    if half_images:
        model.half()
        found = drf_fast.attack(model, x.half(), target, **options)
    else:
        with torch.autocast("cpu", torch.float16):
            found = drf_fast.attack(model, x, target, **options)
    got, true = ((result.x.float() - x).flatten(1) for result in (found, expected))
    assert bool((torch.cosine_similarity(got, true) > 0.999).all())
    assert found.distance.float().tolist() == pytest.approx(expected.distance.tolist(), rel=0.01)


class Merging(nn.Linear):
    """Weights that are merged in eval mode, as those of LoRA layers."""

    merged = False

    def train(self, mode: bool = True) -> Any:
        self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("before", [True, False])
def test_a_layer_with_a_mode_of_its_own_is_in_it_again(before):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), Merging(36, 5)).double().train(before)
    model[1].eval()
    run(model, drf_fast.HardBall(0.5))
    assert (model[2].training, model[2].merged) == (before, not before)
    assert not model[1].training and model.training == before


@pytest.mark.parametrize("kind", ["frozen script", "exported"])
def test_a_network_without_modes_is_attacked(kind):
    torch.manual_seed(0)
    plain_net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).double().eval()
    noisy = torch.zeros(B * M, 1, 6, 6, dtype=torch.float64)
    if kind == "exported":
        net = torch.export.export(plain_net, (noisy,)).module()
    else:
        net = torch.jit.freeze(torch.jit.trace(plain_net, noisy))
    expected = run(plain_net, drf_fast.HardBall(0.5))
    assert torch.equal(run(net, drf_fast.HardBall(0.5)).x, expected.x)


def test_a_network_with_an_exported_part_is_in_eval_mode_as_a_whole():
    part = torch.export.export(nn.Linear(36, 36).double(), (torch.zeros(B * M, 36).double(),))
    model = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.5), part.module(), nn.Dropout(0.5), nn.Linear(36, 5).double()
    )
    seen = []
    model[3].register_forward_hook(lambda module, *_: seen.append(module.training))
    run(model, drf_fast.HardBall(0.5))
    assert seen == [False] * STEPS and model[3].training and model[1].training
