"""Each training loss against its formula, written plainly in float64, and what they share."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import plain
import pytest
import torch
from torch import nn

import drf_fast
from drf_fast.commands.cli import main
from drf_fast.training import methods
from drf_fast.training.methods.common import Batch, MethodOptions

B, M, K, SIGMA, EPSILON = 6, 3, 5, 0.3, 0.4
OPTIONS: dict[str, Any] = {"sigma": SIGMA, "num_samples": M, "steps": 3, "mix_alpha": 0.4}


class Net(nn.Module):
    """Smooth, in float64, and sharp enough for MACER's margin to be open and for some mistakes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(9, 8, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(8, K, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.flatten(1) @ self.a * 0.4) @ self.b * 0.7


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(B, 1, 3, 3, generator=generator, dtype=torch.float64)
    target = Net()(x).argmax(1)
    target[:2] = (target[:2] + 1) % K  # so that some are classified wrong
    smoothed = torch.rand(B, K, generator=generator, dtype=torch.float64)
    smoothed[3] = 0
    smoothed[3, 1] = 7  # all votes for one class
    smoothed /= smoothed.sum(1, keepdim=True)
    return Batch(x, target, drf_fast.noise_key(5, 7), torch.arange(20, 20 + B), smoothed)


def kl(q: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    log_p = logits - torch.logsumexp(logits, 0)
    terms = [q[k] * (q[k].log() - log_p[k]) for k in range(K) if q[k] > 0]
    return torch.stack(terms).sum()


def kept_copies(batch: Batch, b: int, right: int) -> int:
    """K of image b, from the normals that ``catrs`` names; others in the distribution's test."""
    rows = drf_fast.noisy_repeat(torch.zeros(B, 1), 1.0, M, sample_offset=M, **batch.noise)
    uniform = torch.special.ndtr(rows.double()).view(B, M)[b]
    return max(1, sum(float(u) < right / M for u in uniform))


def worst_noise(net: Net, x: torch.Tensor, q: torch.Tensor, first: torch.Tensor, o: MethodOptions):
    """The ascent of one copy (1, 3, 3) in the ball of radius EPSILON, T steps, moments restored."""
    noise, level = first, (first**2).mean().sqrt()
    for _ in range(o.steps):
        noise = noise.detach().requires_grad_()
        (g,) = torch.autograd.grad(kl(q, net((x + noise)[None])[0]), noise)
        moved = noise.detach() + 2 * EPSILON / o.steps * g / g.norm() - first
        noise = first + moved * min(1.0, EPSILON / float(moved.norm()))
        noise = (noise - noise.mean()) / (noise**2).mean().sqrt() * level + first.mean()
    return noise


def plain_catrs(
    net: Net, batch: Batch, o: MethodOptions, ball: Any = None, attacked: bool = True
) -> torch.Tensor:
    assert batch.smoothed is not None
    total = torch.zeros((), dtype=torch.float64)
    for b, y in enumerate(batch.target.tolist()):
        x, q, copies = batch.x[b], batch.smoothed[b], plain.noisy(batch.x, batch, o)[b]
        logits = net(copies)
        kept = kept_copies(batch, b, int((logits.argmax(1) == y).sum()))
        losses = sorted((plain.cross_entropy(row, y) for row in logits), key=torch.Tensor.item)
        total = total + torch.stack(losses[:kept]).sum() / (B * M)
        if kept == M:
            noise = [c - x if not attacked else worst_noise(net, x, q, c - x, o) for c in copies]
            worst = max((kl(q, net((x + n)[None])[0]) for n in noise), key=torch.Tensor.item)
            total = total + o.catrs_lam * worst / B
    return total


HARD = drf_fast.HardBall(EPSILON)
PRICED = drf_fast.SoftBall(EPSILON, lambda0=0.4)
UDR = drf_fast.SoftBall(EPSILON, lambda0=0.9, form="udr", tau=0.3)
CASES = [
    ("gaussian", plain.smoothadv, None, {}),
    ("stability", plain.stability, None, {"stability_lam": 1.7}),
    ("macer", plain.macer, None, {"macer_lam": 3.0, "macer_gamma": 6.0, "macer_beta": 2.0}),
    ("macer", plain.macer, None, {"macer_lam": 0.0}),
    ("smoothmix", plain.smoothmix, None, {"mix_eta": 5.0}),
    ("smoothmix", plain.smoothmix, None, {"mix_eta": 2.0, "mix_step": 1, "mix_radius": 0.15}),
    ("smoothadv", plain.smoothadv, HARD, {}),
    ("smoothadv", plain.smoothadv, HARD, {"grad_norm": "none"}),
    ("smoothadv", plain.smoothadv, PRICED, {"steps": 2}),
    ("smoothadv", plain.smoothadv, PRICED, {"grad_norm": "batch"}),
    ("smoothadv", plain.smoothadv, UDR, {}),
    ("consistency", plain.consistency, None, {"consistency_lam": 4.0, "consistency_eta": 0.7}),
    ("consistency", plain.consistency, HARD, {"consistency_lam": 2.0, "consistency_eta": 0.3}),
    ("consistency", plain.consistency, PRICED, {}),
    ("catrs", plain_catrs, HARD, {"catrs_lam": 0.0}),
    ("catrs", plain_catrs, HARD, {"catrs_lam": 1.7}),
]


def case_id(value: Any) -> str:
    """The same in every process, which a function's address is not."""
    return value.__name__ if callable(value) else str(value)[:40]


@pytest.mark.parametrize(("name", "formula", "ball", "values"), CASES, ids=case_id)
def test_value_and_gradient_are_those_of_the_formula(
    batch, monkeypatch, name, formula, ball, values
):
    options = MethodOptions(**{**OPTIONS, **values})
    # Losses that lift half precision by .float() would lower float64.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    net, twin = Net(), Net()
    got = methods.get(name).step(net, batch, options, ball)
    expected = formula(twin, batch, options, ball)
    got.loss.backward()
    expected.backward()
    assert got.logits.shape == (B * M, K) and not got.logits.requires_grad
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-6)  # u and noise are float32
    if name in ("smoothadv", "consistency") and ball is not None:
        moved = plain.adversarial(twin, batch, options, ball).x - batch.x
        distance = moved.flatten(1).norm(dim=1)
        assert float(distance.min()) > 0.02
        assert torch.allclose(got.distance, distance, rtol=0, atol=1e-9)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert float((a.grad - b.grad).abs().max()) < 1e-6 * float(b.grad.abs().max())


def test_the_batch_of_these_cases_reaches_every_term(batch):
    net = Net()
    whole = MethodOptions(**OPTIONS, macer_lam=3.0, macer_gamma=6.0, macer_beta=2.0)
    logits = net(plain.noisy(batch.x, batch, whole).flatten(0, 1)).unflatten(0, (B, M))
    right = logits.softmax(2).mean(1).argmax(1)
    assert 0 < int((right == batch.target).sum()) < B
    none = MethodOptions(**OPTIONS, macer_lam=0.0)
    assert (plain.macer(net, batch, whole) - plain.macer(net, batch, none)).item() > 0.05
    right = (logits.argmax(2) == batch.target[:, None]).sum(1)
    kept = [kept_copies(batch, b, int(r)) for b, r in enumerate(right)]
    assert {1, M} <= set(kept) and set(right.tolist()) - {0, M}  # also where K is left to chance

    def copies(x: torch.Tensor) -> torch.Tensor:
        return plain.noisy(x, batch, whole)

    one = plain.ascend(net, batch.x, batch.target, copies, 1, None, whole.mix_alpha)
    assert float((one - batch.x).flatten(1).norm(dim=1).max()) > 0.15  # mix_radius cuts


def test_mixing_weights_are_uniform_to_one_half_and_belong_to_step_and_image():
    from drf_fast.training.methods.smoothmix import _mixing_weight

    def weights(key: int, ids: torch.Tensor, m: int = M) -> torch.Tensor:
        nothing = torch.zeros(len(ids), 1)
        return _mixing_weight(Batch(nothing, torch.zeros(len(ids)), key, ids), m)

    ids = torch.arange(20_000)
    u = weights(3, ids)
    assert float(u.min()) > 0 and float(u.max()) < 0.5
    expected = (torch.arange(20_000) + 0.5) / 40_000
    assert float((u.sort().values - expected).abs().max()) < 0.5 * 1.95 / math.sqrt(20_000)
    assert torch.equal(weights(3, ids[100:110]), u[100:110])
    assert not torch.equal(weights(4, ids), u)
    # The normal behind it is none of the m that the copies have.
    z = torch.special.ndtri(2 * u[:50].double())
    noise = drf_fast.noisy_repeat(torch.zeros(50, 1), 1.0, M, seed=3, image_ids=ids[:50])
    assert float((noise.unflatten(0, (50, M)).squeeze(2) - z[:, None]).abs().min()) > 1e-5


def test_the_number_of_kept_copies_is_binomial_and_belongs_to_step_and_image():
    from drf_fast.training.methods.catrs import _num_kept

    def kept(key: int, ids: torch.Tensor, right: int, m: int = 4) -> torch.Tensor:
        nothing = torch.zeros(len(ids), 1)
        rows = (torch.arange(m) < right).expand(len(ids), m)
        return _num_kept(Batch(nothing, torch.zeros(len(ids)), key, ids), rows)

    ids = torch.arange(20_000)
    assert set(kept(3, ids, 0).tolist()) == {1} and set(kept(3, ids, 4).tolist()) == {4}
    for right in (1, 2, 3):
        p = right / 4
        exact = [math.comb(4, k) * p**k * (1 - p) ** (4 - k) for k in range(5)]
        exact = [0.0, exact[0] + exact[1], *exact[2:]]  # none is raised to one
        found = torch.bincount(kept(3, ids, right), minlength=5) / len(ids)
        for share, expected in zip(found.tolist(), exact, strict=True):
            assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / len(ids))
    assert torch.equal(kept(3, ids[100:110], 2), kept(3, ids, 2)[100:110])
    assert not torch.equal(kept(4, ids, 2), kept(3, ids, 2))


def test_catrs_without_a_ball_or_at_a_price_of_1_has_the_noise_itself(batch, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    options = MethodOptions(**OPTIONS, catrs_lam=1.7)
    expected = plain_catrs(Net(), batch, options, attacked=False).item()
    assert plain_catrs(Net(), batch, options).item() > 1.02 * expected
    free = methods.get("catrs").step(Net(), batch, options, None)
    assert free.distance is None and free.loss.item() == pytest.approx(expected, rel=1e-6)
    ball = drf_fast.SoftBall(EPSILON, lambda0=1.0, form="prox")
    priced = methods.get("catrs").step(Net(), batch, options, ball)
    assert priced.loss.item() == pytest.approx(expected, rel=1e-6)
    assert float(priced.distance.max()) < 1e-6


def test_drf_on_catrs_prices_the_noise(batch):
    def step(ball: Any) -> Any:
        return methods.get("catrs").step(Net(), batch, MethodOptions(**OPTIONS), ball)

    hard = step(drf_fast.HardBall(EPSILON))
    same = step(drf_fast.SoftBall(EPSILON, lambda0=1.0, form="excess"))
    assert torch.equal(same.distance, hard.distance) and torch.equal(same.loss, hard.loss)
    prices = [step(drf_fast.SoftBall(EPSILON, lambda0=lam)).distance for lam in (0.0, 0.4, 0.8)]
    assert all(bool((a > b).all()) for a, b in itertools.pairwise(prices))
    assert hard.distance.shape == (B,) and float(hard.distance.min()) > 0.5 * EPSILON


def test_catrs_without_smoothed_predictions_is_refused(batch):
    bare = Batch(batch.x, batch.target, batch.key, batch.image_ids)
    with pytest.raises(ValueError, match="catrs needs batch.smoothed"):
        methods.get("catrs").step(Net(), bare, MethodOptions(**OPTIONS), None)


def test_drf_on_smoothmix_prices_the_distance(batch):
    for mix_step in (0, 1):
        options = MethodOptions(**OPTIONS, mix_step=mix_step)
        free = methods.get("smoothmix").step(Net(), batch, options, None).distance
        for lam, share in ((0.0, 1.0), (0.5, 0.51), (1.0, 0.0)):
            ball = drf_fast.SoftBall(0.5, lambda0=lam, form="prox")
            distance = methods.get("smoothmix").step(Net(), batch, options, ball).distance
            assert bool((distance <= share * 3 * 0.4 + 1e-6).all())
            if lam == 0:
                assert torch.allclose(distance, free, atol=1e-6)


def test_consistency_without_its_weights_is_smoothadv(batch):
    options = MethodOptions(**OPTIONS, consistency_lam=0.0, consistency_eta=0.0)
    for ball in (drf_fast.HardBall(0.4), drf_fast.SoftBall(0.4, lambda0=0.3)):
        a = methods.get("consistency").step(Net(), batch, options, ball).loss
        b = methods.get("smoothadv").step(Net(), batch, options, ball).loss
        assert a.item() == pytest.approx(b.item(), rel=1e-6)


def attacked(batch: Batch, ball: Any) -> drf_fast.adversary.AttackResult:
    return drf_fast.attack(
        Net(), batch.x, batch.target, sigma=SIGMA, num_samples=M, steps=4, step_size=0.2,
        ball=ball, **batch.noise,
    )  # fmt: skip


def test_excess_with_lambda_1_is_the_hard_ball(batch):
    soft = attacked(batch, drf_fast.SoftBall(0.4, lambda0=1.0, form="excess"))
    hard = attacked(batch, drf_fast.HardBall(0.4))
    assert torch.equal(soft.x, hard.x) and torch.equal(soft.noisy, hard.noisy)
    assert float(hard.distance.max()) == pytest.approx(0.4)


@pytest.mark.parametrize("form", ["prox", "shrink", "excess", "udr"])
def test_a_price_of_0_is_unconstrained(batch, form):
    soft = attacked(batch, drf_fast.SoftBall(0.4, lambda0=0.0, form=form))
    free = attacked(batch, None)
    assert torch.equal(soft.x, free.x)
    assert float(free.distance.min()) > 0.4


@pytest.mark.parametrize("lam", [1.0, 1.5])
@pytest.mark.parametrize("form", ["prox", "shrink"])
def test_a_price_of_1_or_more_is_gaussian_training(batch, form, lam):
    options = MethodOptions(**OPTIONS)
    ball = drf_fast.SoftBall(0.4, lambda0=lam, form=form)
    a = methods.get("smoothadv").step(Net(), batch, options, ball)
    b = methods.get("gaussian").step(Net(), batch, options, None)
    # alpha * lambda / ||d|| may round to just below 1
    assert float(a.distance.max()) < 1e-6  # type: ignore[union-attr]
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-6)


TRAINED = [
    ["--method", "stability", "--num-samples", "1", "--stability-lam", "0.5"],
    ["--method", "macer", "--num-samples", "4", "--macer-lam", "4"],
    ["--method", "smoothmix", "--no-drf", "--steps", "2", "--mix-alpha", "0.5"],
    ["--method", "smoothmix", "--steps", "2", "--mix-step", "1", "--mix-warmup", "2"],
    ["--method", "smoothadv", "--steps", "2", "--epsilon", "0.5"],
    ["--method", "consistency", "--steps", "0"],
]


@pytest.mark.slow
@pytest.mark.parametrize("flags", TRAINED, ids=lambda flags: " ".join(flags[1:4]))
def test_a_short_training_beats_chance_under_noise(tmp_path, flags):
    words = ["train", "--out", str(tmp_path / "r"), "--train-images", "1536", "--epochs", "2",
             "--sigma", "0.25", "--device", "cpu", "--memory-format", "channels_last",
             "--certify-images", "0", *flags]  # fmt: skip
    assert main(words) == 0
    metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").open()]
    assert metrics[-1]["test_accuracy_under_noise"] > 0.4  # chance is 0.1
    assert ("distance" in metrics[0]) == ("--steps" in flags and flags[-1] != "0")
