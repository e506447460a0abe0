"""The searches for adversarial images, where the answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import linear
import pytest
import torch

import drf_fast
from drf_fast.attacks import ddn as ddn_module
from drf_fast.attacks import engine
from drf_fast.attacks.ddn import ddn
from drf_fast.attacks.search import Search, random_start, scaled_to, worst
from drf_fast.functional import noise_key
from drf_fast.runtime.randomness import ATTACK


@pytest.fixture(scope="module")
def half_spaces():
    """Two classes parted by a plane, images in the middle of the box, their distances to it."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(50, generator=generator, dtype=torch.float64)
    normal /= normal.norm()
    distance = torch.tensor([0.2, 0.7, 1.3])
    x = (0.5 + distance[:, None] * normal).float()
    network = torch.nn.Linear(50, 2)
    with torch.no_grad():
        network.weight.copy_(torch.stack([-4 * normal, 4 * normal]))
        network.bias.copy_(torch.tensor([2.0, -2.0]) * normal.sum())
    return network, x, distance


def test_ddn_finds_the_distance_to_a_plane(half_spaces):
    network, x, distance = half_spaces
    target, ids = torch.ones(3, dtype=torch.int64), torch.arange(3)
    found = ddn(network, x, target, sigma=0.25, num_samples=64, steps=100, seed=3, image_ids=ids)
    # The smoothed plane is the plane itself; 64 noisy copies displace it by sigma / 8 at 1 sigma.
    assert torch.allclose((found - x).norm(dim=1), distance, rtol=0.05, atol=0.12)
    noisy = drf_fast.noisy_repeat(found, 0.25, 64, seed=3, image_ids=ids)
    mean = network(noisy).softmax(1).reshape(3, 64, 2).mean(1)
    assert (mean.argmax(1) == 0).all()  # and each is on the other side


def test_ddn_gives_the_nearest_of_all_that_misled(half_spaces, monkeypatch):
    network, x, _ = half_spaces
    plain, seen = ddn_module._gradient_and_misled, []

    def recorded(model, images, *others):
        gradient, misled = plain(model, images, *others)
        seen.append(torch.where(misled, (images.detach() - x).norm(dim=1), torch.inf))
        return gradient, misled

    monkeypatch.setattr(ddn_module, "_gradient_and_misled", recorded)
    target, ids = torch.ones(3, dtype=torch.int64), torch.arange(3)
    found = ddn(network, x, target, sigma=0.25, num_samples=64, steps=100, seed=3, image_ids=ids)
    misled_at = torch.stack(seen)
    nearest = misled_at.amin(0)
    assert torch.allclose((found - x).norm(dim=1), nearest, rtol=0, atol=1e-6)
    last = torch.stack([column[column.isfinite()][-1] for column in misled_at.T])
    assert bool((last > nearest + 1e-3).any())


def test_ddn_gives_its_last_image_where_nothing_misleads():
    network = torch.nn.Linear(4, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0] * 4, [0.1] * 4]))
        network.bias.copy_(torch.tensor([0.0, 9.0]))
    x = torch.full((1, 4), 0.5)
    found = ddn(network, x, torch.ones(1, dtype=torch.int64), sigma=0.1, num_samples=2, steps=30,
                seed=0, image_ids=torch.arange(1))  # fmt: skip
    assert found.min() >= 0 and found.max() <= 1 and not torch.equal(found, x)


def test_random_starts_are_uniform_in_the_ball():
    """(r / epsilon)^D of a uniform point is uniform on (0, 1), and its coordinates have mean 0."""
    x = torch.full((20_000, 5), 0.5)
    points = random_start(x, 0.4, 7, torch.arange(len(x))) - x
    u = (points.norm(dim=1).double() / 0.4).pow(5).sort().values
    steps = (torch.arange(len(u), dtype=torch.float64) + 0.5) / len(u)
    assert float((u - steps).abs().max()) < 1.95 / len(u) ** 0.5  # Kolmogorov, p = 0.001
    assert float(points.mean(0).abs().max()) < 4 * 0.4 / (7 * len(u)) ** 0.5  # var eps^2 / (D + 2)
    assert float(points.norm(dim=1).max()) <= 0.4 * (1 + 1e-6)


def test_random_starts_stay_in_the_box_and_in_the_ball():
    x = torch.tensor([[0.0, 1.0, 0.02, 0.5]]).repeat(500, 1)
    start = random_start(x, 0.3, 1, torch.arange(500))
    assert start.min() >= 0 and start.max() <= 1
    assert float((start - x).norm(dim=1).max()) <= 0.3 * (1 + 1e-6)


def test_drawn_out_has_the_length_asked_for():
    x = torch.full((2, 1, 3, 3), 0.5)
    direction = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    moved = scaled_to(x, direction, 0.25)
    assert torch.allclose((moved - x).flatten(1).norm(dim=1), torch.tensor(0.25))
    assert torch.equal(scaled_to(x, torch.zeros_like(x), 0.25), x)


def test_of_each_image_the_candidate_with_the_fewest_votes():
    a, b, c = torch.zeros(3, 2), torch.ones(3, 2), 2 * torch.ones(3, 2)
    table = {0.0: [5, 1, 3], 1.0: [2, 4, 3], 2.0: [2, 0, 9]}
    names, images = worst(
        [("a", a), ("b", b), ("c", c)], lambda images: torch.tensor(table[float(images[0, 0])])
    )
    assert names == ["b", "c", "a"] and images[:, 0].tolist() == [1, 2, 0]  # the first of equals


def test_an_ascent_begins_where_it_is_told():
    network = linear.fitted()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    start = (x + 0.01).clamp(0, 1)

    def ascended(start: torch.Tensor) -> drf_fast.AttackResult:
        return drf_fast.attack(
            network, x, torch.arange(2), sigma=0.5, num_samples=2, steps=1, step_size=1e-4,
            ball=drf_fast.HardBall(2.0), seed=1, image_ids=torch.arange(2), start=start,
        )  # fmt: skip

    moved = ascended(start)
    assert float((moved.x - start).flatten(1).norm(dim=1).max()) <= 1.01e-4
    assert torch.allclose(moved.distance, (moved.x - x).flatten(1).norm(dim=1), rtol=1e-5)
    with pytest.raises(ValueError, match="start must be images like x"):
        ascended(start[:1])


def test_restarts_share_neither_noise_nor_place_and_none_with_training():
    search = Search(num_samples=2, steps=1, restarts=3, ddn_steps=0, key=noise_key(0, ATTACK))
    x, ids = torch.full((1, 1, 28, 28), 0.5), torch.tensor([4])
    found = search.candidates(linear.fitted(), x, torch.tensor([1]), 0.5, ids, 0.5, None)
    assert len(found) == 3 and len({image.numpy().tobytes() for _, image in found}) == 3
    training = {noise_key(0, step) for step in range(1000)} | {0}
    own = {noise_key(search.key, restart) for restart in range(4)} | {search.key}
    assert not training & own


def test_an_abstention_that_becomes_the_label_is_attacked_further():
    """Three images labelled 2, on which the classifier abstains; the second becomes a 3."""
    answers = iter(torch.tensor([[-1, -1, -1], [2, 3, -1], [2, 3, 4]]))
    judge: Any = SimpleNamespace(
        ABSTAIN=-1,
        sigma=0.5,
        predict_batch=lambda *_, **__: next(answers),
        estimate=lambda images, *_, **__: (-images.flatten(1).sum(1),),
    )
    search: Any = SimpleNamespace(
        directions=lambda *_: None,
        candidates=lambda model, x, target, sigma, ids, epsilon, direction: [("pgd", x + epsilon)],
    )
    images: Any = SimpleNamespace(
        float_images=lambda at: torch.zeros(len(at), 1, 2, 2), labels=torch.full((3,), 2)
    )
    device = torch.device("cpu")
    work = engine.Work(
        judge, None, images, (0, 1, 2), device, search, (0.2, 0.8), n=9, alpha=0.1, batch_size=9
    )
    small, large = engine.adversarial(work, (0, 1, 2))
    assert small.x[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert large.x[:, 0, 0, 0].tolist() == pytest.approx([0.8, 0.2, 0.8])  # the second is done
