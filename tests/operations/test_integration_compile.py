"""torch.compile: one graph of a whole training step, equal to eager, and never compiled again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import drf_fast

pytestmark = pytest.mark.slow

B, M, T, CLASSES, STEPS = 4, 3, 2, 5, 20
IDS = torch.tensor([3, 1, 40, 2**32 - 1])


class Net(nn.Module):
    """Batch norm and dropout, so that it matters that an attack runs in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(B, 1, 6, 6, generator=generator)
    return x, torch.randint(CLASSES, (B,), generator=generator)


def numbers(step: int, number: Callable[..., Any] = torch.tensor) -> dict[str, Any]:
    """What changes from step to step, as ``number`` makes it."""
    return {
        "sigma": number(0.1 + 0.02 * step),
        "seed": number(1000 * step - 7),
        "step_size": number(0.05 + 0.01 * step),
        "epsilon": number(0.2 + 0.03 * step),
        "lam": number(0.05 * step),
    }


def soft_ce_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, n: dict[str, Any]) -> Any:
    noisy = drf_fast.noisy_repeat(x, n["sigma"], M, seed=n["seed"], image_ids=IDS)
    return drf_fast.smooth_ce(model(noisy), y, M)


def attack_step(model: Any, x: torch.Tensor, y: torch.Tensor, n: dict[str, Any]) -> Any:
    ball = drf_fast.HardBall(n["epsilon"])
    found = drf_fast.attack(
        model,
        x,
        y,
        sigma=n["sigma"],
        num_samples=M,
        steps=T,
        ball=ball,
        step_size=n["step_size"],
        seed=n["seed"],
        image_ids=IDS,
    )
    return found.x, found.noisy, found.distance


def losses_step(logits: torch.Tensor, y: torch.Tensor, n: dict[str, Any]) -> torch.Tensor:
    return drf_fast.consistency_loss(
        logits, y, M, lam=n["lam"], eta=n["step_size"]
    ) + drf_fast.macer_loss(logits, y, M, sigma=n["sigma"], lam=n["lam"])


def same(a: Any, b: Any, rtol: float = 0.0) -> None:
    for left, right in zip(a, b, strict=True):
        if rtol == 0:
            assert torch.equal(left, right)
        else:
            assert torch.allclose(left, right, rtol=rtol, atol=rtol * float(right.abs().max()))


def value_and_gradients(step: Callable[..., torch.Tensor], n: dict[str, Any]) -> list[torch.Tensor]:
    model = Net().eval()  # eval: dropout's masks are not the subject
    x, y = images()
    x.requires_grad_()
    loss = step(model, x, y, n)
    return [loss.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])]


@pytest.mark.parametrize("compiler, rtol", [("aot_eager", 0.0), ("inductor", 1e-5)])
def test_smooth_ce_of_a_network_of_noisy_copies_with_its_backward(compiler, rtol):
    compiled = torch.compile(soft_ce_step, fullgraph=True, backend=compiler)
    got = value_and_gradients(compiled, numbers(3))
    same(got, value_and_gradients(soft_ce_step, numbers(3)), rtol)
    assert float(got[1].abs().max()) > 0


@pytest.mark.parametrize("compiler, rtol", [("aot_eager", 0.0), ("inductor", 1e-4)])
def test_an_attack_is_one_graph_and_leaves_the_network_as_it_was(compiler, rtol):
    model = Net().train()
    x, y = images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = torch.compile(attack_step, fullgraph=True, backend=compiler)
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            got = compiled(model, x, y, numbers(5))
        same(got, attack_step(model, x, y, numbers(5)), rtol)
        assert not any(tensor.requires_grad for tensor in got) and float(got[2].min()) > 0.1
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


ANY_CALLABLE: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "function": lambda: lambda rows: rows.flatten(1)[:, :CLASSES],
    "identity": lambda: lambda rows: rows,  # nothing between the noise and our loss
    "frozen": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)).requires_grad_(False),
}


@pytest.mark.parametrize("name", ANY_CALLABLE)
def test_what_needs_no_gradient_itself_is_attacked_all_the_same(name):
    torch.manual_seed(0)
    model = ANY_CALLABLE[name]()
    x = torch.rand(B, 6)
    y = torch.arange(B) % CLASSES
    compiled = torch.compile(attack_step, fullgraph=True, backend="aot_eager")
    got = compiled(model, x, y, numbers(5))
    same(got, attack_step(model, x, y, numbers(5)))
    assert float(got[2].min()) > 0.1


# Of udr the price is computed in the graph, from lambda, the step size and tau.
FORMS: list[dict[str, Any]] = [{"form": "prox"}, {"form": "udr", "tau": 0.3}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_with_attack_loss_and_dual_update_is_one_graph(form):
    """All of DRF's step but the optimizer's: lambda moves inside the graph."""
    options = {"lambda0": 0.3, "lambda_lr": 0.1, "kappa": 6, "lambda_every": 1, **form}
    balls = [drf_fast.SoftBall(0.5, **options) for _ in range(2)]
    models = [Net().eval(), Net().eval()]

    def step(model: nn.Module, ball: drf_fast.SoftBall, x, y, sigma, seed) -> torch.Tensor:
        options = {"sigma": sigma, "num_samples": M, "steps": T, "seed": seed, "image_ids": IDS}
        found = drf_fast.attack(model, x, y, ball=ball, **options)
        loss = drf_fast.smooth_ce(model(found.noisy), y, M)
        ball.update(found.distance)
        return loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    lambdas = []
    for number in range(4):
        x, y = images(number)
        losses = [
            function(model, ball, x, y, torch.tensor(0.25), torch.tensor(number))
            for function, model, ball in zip((step, compiled), models, balls, strict=True)
        ]
        assert torch.equal(*losses)
        for model, loss in zip(models, losses, strict=True):
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient)
        same(models[0].parameters(), models[1].parameters())
        assert torch.equal(balls[0].lam, balls[1].lam)
        lambdas.append(float(balls[0].lam))
    assert len(set(lambdas)) == 4


def as_python(value: float) -> float:
    return value


CHANGING: dict[str, Callable[..., Any]] = {
    "smooth_ce": lambda model, x, y, n: [soft_ce_step(model, x, y, n)],
    "attack": attack_step,
    "losses": lambda model, x, y, n: [losses_step(model(x).repeat_interleave(M, 0), y, n)],
}


@pytest.mark.parametrize("number", [torch.tensor, as_python], ids=["tensors", "numbers"])
@pytest.mark.parametrize("name", CHANGING)
def test_20_changing_steps_compile_once(name, number):
    """Python numbers need dynamic=True for that: else their first change compiles again, once."""
    step, model = CHANGING[name], Net().eval()
    x, y = images()
    dynamic = True if number is as_python else None
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    seen = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index in range(STEPS):
            got = compiled(model, x, y, numbers(index, number))
            same(got, step(model, x, y, numbers(index, number)))
            seen.append(got[0].detach().clone())
    for index, result in enumerate(seen[1:]):
        assert not torch.equal(result, seen[index])


def test_python_numbers_compile_twice_at_most_without_dynamic_true():
    model = Net().eval()
    x, y = images()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attack_step, fullgraph=True, backend=counter)
    for index in range(6):
        got = compiled(model, x, y, numbers(index, as_python))
        same(got, attack_step(model, x, y, numbers(index, as_python)))
    assert counter.frame_count == 2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_soft_ball_whose_lambda_moves_between_steps_compiles_once(form):
    model = Net().eval()
    x, y = images()
    ball = drf_fast.SoftBall(0.2, lambda0=0.5, lambda_lr=0.5, kappa=B, lambda_every=1, **form)

    def step(seed: torch.Tensor) -> drf_fast.AttackResult:
        return drf_fast.attack(
            model, x, y, sigma=0.25, num_samples=M, steps=T, ball=ball, seed=seed, image_ids=IDS
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    distances = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index in range(STEPS):
            got, expected = compiled(torch.tensor(index)), step(torch.tensor(index))
            assert torch.equal(got.noisy, expected.noisy)
            ball.update(got.distance)
            distances.append(float(got.distance.mean()))
    assert len(set(distances)) > STEPS // 2


def test_without_a_seed_every_call_draws_anew_and_manual_seed_governs_it():
    x, _ = images()
    compiled = torch.compile(
        lambda: drf_fast.noisy_repeat(x, 0.25, M), fullgraph=True, backend="aot_eager"
    )
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn += [compiled(), compiled()]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


def test_a_compiled_key_is_drawn_twice_of_32_bits_each():
    x, _ = images()
    drawn: list[torch.fx.Node] = []

    def backend(module: torch.fx.GraphModule, example: Any) -> Any:
        drawn.extend(node for node in module.graph.nodes if node.target is torch.randint)
        return module

    torch.compile(lambda: drf_fast.noisy_repeat(x, 0.25, M), fullgraph=True, backend=backend)()
    assert [node.args[0] for node in drawn] == [2**32, 2**32]


def test_counting_and_bounds_are_captured():
    def certify(logits: torch.Tensor, sigma: float, alpha: float) -> tuple[torch.Tensor, ...]:
        counts = torch.zeros(2, CLASSES, dtype=torch.int64)
        drf_fast.vote(logits, counts)
        top = counts.amax(1)
        return (
            counts,
            drf_fast.clopper_pearson_lower(top, 50, alpha),
            drf_fast.certified_radius(top, 50, sigma=sigma, alpha=alpha),
        )

    compiled = torch.compile(certify, fullgraph=True, backend="aot_eager", dynamic=True)
    logits = torch.randn(100, CLASSES, generator=torch.Generator().manual_seed(0))
    logits[:, 2] += 4
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sigma, alpha in ((0.25, 0.001), (0.5, 0.01)):
            got = compiled(logits, sigma, alpha)
            same(got, certify(logits, sigma, alpha))
            assert float(got[2].min()) > 0.1


def test_noise_in_levels_is_captured_and_its_table_is_sigmas_own():
    u = torch.arange(B * 36, dtype=torch.uint8).reshape(B, 1, 6, 6)

    def noise(sigma: float, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        names: dict[str, Any] = {"seed": seed, "image_ids": IDS}
        wide = drf_fast.noisy_levels(u, 2 * sigma, M, **names)  # two tables in one graph
        return wide, drf_fast.noisy_levels(u, sigma, M, dtype=torch.bfloat16, **names)

    compiled = torch.compile(noise, fullgraph=True, backend="aot_eager")
    for sigma in (0.25, 0.5):  # a number, of which each new one compiles anew
        same(compiled(sigma, torch.tensor(0)), noise(sigma, torch.tensor(0)))
        seen = []
        with torch._dynamo.config.patch(error_on_recompile=True):
            for index in range(STEPS):
                got = compiled(sigma, torch.tensor(1000 * index - 7))
                same(got, noise(sigma, torch.tensor(1000 * index - 7)))
                seen.append(got[0])
        assert all(not torch.equal(one, seen[0]) for one in seen[1:])
    with pytest.raises(ValueError, match="0 < sigma <= 16"):
        compiled(20.0, torch.tensor(0))


def test_autocast_around_compiled_code():
    model = Net().eval()
    x, y = images()
    compiled = torch.compile(attack_step, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = compiled(model, x, y, numbers(5)), attack_step(model, x, y, numbers(5))
    same(got, expected)
    assert got[1].dtype == torch.float32


def test_keys_as_python_numbers_share_one_graph_after_the_first():
    """The second key turns the number into a variable; its sign and size are no reason for more."""
    counter = torch._dynamo.testing.CompileCounter()
    x, _ = images()

    def noise(key: int) -> torch.Tensor:
        return drf_fast.noisy_repeat(x, 0.5, M, seed=key, image_ids=IDS)

    compiled = torch.compile(noise, backend=counter)
    keys = [drf_fast.noise_key(0, step) for step in range(7)]
    assert min(keys) < 0 < max(keys)
    for key in keys:
        assert torch.equal(compiled(key), noise(key))
    assert counter.frame_count <= 2
