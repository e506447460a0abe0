"""torch.func, forward mode, second derivatives, torch.jit.trace, torch.export: right, or refused.

Refused means one sentence of ours about the operation, never an internal message of torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch.autograd import forward_ad

import drf_fast

B, M, CLASSES, SIGMA = 2, 3, 4, 0.5
IDS, TARGET = torch.tensor([3, 1]), torch.tensor([0, 2])
BALL = drf_fast.HardBall(0.5)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


X, LOGITS, COUNTS = random(B, 3, 4), random(B, M, CLASSES), torch.tensor([90, 99])
WEIGHT = random(12, CLASSES)


def noisy_repeat(x: torch.Tensor) -> torch.Tensor:
    return drf_fast.noisy_repeat(x, SIGMA, M, seed=1, image_ids=IDS)


def adversary_step(x: torch.Tensor) -> torch.Tensor:
    grad = x.repeat_interleave(M, 0)
    noise: dict[str, Any] = {"sigma": SIGMA, "seed": 1, "image_ids": IDS}
    return drf_fast.adversary_step(grad, x, x, step_size=0.5, ball=BALL, **noise)[1]


def attack(x: torch.Tensor) -> torch.Tensor:
    noise: dict[str, Any] = {"sigma": SIGMA, "seed": 1, "image_ids": IDS}
    options: dict[str, Any] = {"num_samples": M, "steps": 2, "ball": BALL, **noise}
    return drf_fast.attack(lambda rows: rows.flatten(1) @ WEIGHT, x, TARGET, **options).x


Function = Callable[[torch.Tensor], torch.Tensor]
# The operation as a function of one tensor, and such a tensor.
DIFFERENTIABLE: dict[str, tuple[Function, torch.Tensor]] = {
    "noisy_repeat": (noisy_repeat, X),
    "smooth_ce": (lambda z: drf_fast.smooth_ce(z, TARGET), LOGITS),
    "consistency_loss": (lambda z: drf_fast.consistency_loss(z, TARGET, lam=1.0), LOGITS),
    "macer_loss": (lambda z: drf_fast.macer_loss(z, TARGET, sigma=SIGMA, lam=1.0), LOGITS),
}
EVERY: dict[str, tuple[Function, torch.Tensor]] = {
    **DIFFERENTIABLE,
    "adversary_step": (adversary_step, X),
    "attack": (attack, X),
    "vote": (
        lambda z: drf_fast.vote(z.flatten(0, 1), torch.zeros(B, CLASSES, dtype=torch.int64)),
        LOGITS,
    ),
    "clopper_pearson_lower": (lambda k: drf_fast.clopper_pearson_lower(k, 100, 0.01), COUNTS),
    "certified_radius": (
        lambda k: drf_fast.certified_radius(k, 100, sigma=SIGMA, alpha=0.01),
        COUNTS,
    ),
}


def each(operations: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("name", operations)


def refused(name: str) -> Any:
    return pytest.raises(RuntimeError, match=f"^{name} runs on plain tensors, got a torch.func")


REVERSE_ONLY = "has derivatives in reverse mode only, got a forward_ad.dual_level"


@each(EVERY)
def test_vmap_is_refused_with_the_way_out(name):
    function, x = EVERY[name]
    with refused(name):
        torch.func.vmap(function)(torch.stack([x, x]))
    function(x)  # and leaves nothing behind


@each(DIFFERENTIABLE)
@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev", "jvp", "linearize", "hessian"])
def test_derivatives_of_torch_func_are_refused(name, transform):
    function, x = DIFFERENTIABLE[name]

    def total(z: torch.Tensor) -> torch.Tensor:
        return function(z).sum()

    transforms: dict[str, Callable[[], Any]] = {
        "grad": lambda: torch.func.grad(total)(x),
        "vjp": lambda: torch.func.vjp(function, x),
        "jacrev": lambda: torch.func.jacrev(function)(x),
        "jvp": lambda: torch.func.jvp(function, (x,), (x,)),
        "linearize": lambda: torch.func.linearize(function, x),
        "hessian": lambda: torch.func.hessian(total)(x),
    }
    linear = pytest.raises(RuntimeError, match=f"^{name} {REVERSE_ONLY}")
    with linear if transform == "linearize" else refused(name):
        transforms[transform]()


@pytest.fixture
def dynamo() -> Iterator[Callable[[Function], Function]]:
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


@each(DIFFERENTIABLE)
def test_torch_func_grad_inside_compiled_code_is_right(name, dynamo):
    function, x = DIFFERENTIABLE[name]
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf).sum(), leaf)

    @dynamo
    def gradient(z: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda t: function(t).sum())(z)

    try:
        found = gradient(x)
    except InternalTorchDynamoError as error:
        if "must override the setup_context" not in str(error):
            raise
        pytest.skip("Dynamo of this torch takes no autograd.Function under torch.func (2.6)")
    assert torch.equal(found, expected)


@each(DIFFERENTIABLE)
def test_forward_mode_is_refused(name):
    function, x = DIFFERENTIABLE[name]
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=f"^{name} {REVERSE_ONLY}"),
    ):
        function(forward_ad.make_dual(x, torch.ones_like(x)))


@each(DIFFERENTIABLE)
def test_second_derivatives_are_refused_and_first_ones_by_any_road_are_right(name):
    function, x = DIFFERENTIABLE[name]

    def total(z: torch.Tensor) -> torch.Tensor:
        return function(z).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    jacobian: Any = torch.autograd.functional.jacobian(total, x)
    assert torch.equal(jacobian, expected)
    pulled: Any = torch.autograd.functional.vjp(total, x)[1]
    assert torch.equal(pulled, expected)
    for second in (
        lambda: torch.autograd.grad(total(leaf), leaf, create_graph=True),
        lambda: torch.autograd.functional.hvp(total, x, torch.ones_like(x)),
        lambda: torch.autograd.functional.hessian(total, x),
    ):
        with pytest.raises(RuntimeError, match="^drf_fast operations can be differentiated once"):
            second()


def quietly(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():  # jit is deprecated, and warns of each size that is looked at
        warnings.simplefilter("ignore")
        return function()


@each({name: None for name in EVERY if name != "attack"})
def test_a_trace_gives_the_operation_on_other_inputs_too(name):
    function, x = EVERY[name]
    traced = quietly(lambda: torch.jit.trace(function, (x,), check_trace=False))
    other = x.flip(0) if x.dtype == torch.int64 else x.flip(0) * 0.9
    for given in (x, other):
        got, expected = traced(given), function(given)
        assert torch.equal(got, expected) and got.shape == expected.shape


@each(DIFFERENTIABLE)
def test_a_trace_has_the_gradient(name):
    function, x = DIFFERENTIABLE[name]
    example = x.clone().requires_grad_()
    traced = quietly(lambda: torch.jit.trace(function, (example,), check_trace=False))
    gradients = []
    for version in (function, traced):
        leaf = (x.flip(0) * 0.9).requires_grad_()
        gradients += torch.autograd.grad(version(leaf).sum(), leaf)
    assert torch.equal(*gradients)


def module_of(function: Function) -> nn.Module:
    class Exported(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    return Exported()


@each({name: None for name in EVERY if name != "attack"})
def test_an_export_gives_the_operation(name):
    function, x = EVERY[name]
    module = module_of(function)
    exported = quietly(lambda: torch.export.export(module, (x,), strict=False)).module()
    other = x.flip(0) if x.dtype == torch.int64 else x.flip(0) * 0.9
    assert torch.equal(exported(other), function(other))


def test_an_export_without_a_seed_draws_anew():
    module = module_of(lambda x: drf_fast.noisy_repeat(x, SIGMA, M))
    run = torch.export.export(module, (X,), strict=False).module()
    assert not torch.equal(run(X), run(X))


tells = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"),
    reason="in its strict mode torch tells since 2.7 that it exports",
)
strict_or_not = pytest.mark.parametrize("strict", [pytest.param(True, marks=tells), False])


@each(DIFFERENTIABLE)
@strict_or_not
def test_an_export_refuses_to_lose_a_gradient(name, strict):
    function, x = DIFFERENTIABLE[name]
    with pytest.raises(Exception, match="torch.export would drop the gradient"):
        quietly(
            lambda: torch.export.export(
                module_of(function), (x.clone().requires_grad_(),), strict=strict
            )
        )


@strict_or_not
def test_an_attack_is_neither_traced_nor_exported(strict):
    refusal = pytest.raises(Exception, match="attack cannot be recorded by torch.jit.trace or")
    with refusal:
        torch.export.export(module_of(attack), (X,), strict=strict)
    with refusal:
        quietly(lambda: torch.jit.trace(attack, (X,), check_trace=False))
