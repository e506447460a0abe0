"""Sound certificates: classifiers that refute ordinary noise only, coverage, bounds.

The malicious classifiers look at what real noise could not show: floats that only some images
reach. Ordinary certificates of them are wrong, which is shown here too.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from half_spaces import ALPHA, SIGMA, above, classifier, two_classes
from scipy.stats import binomtest

import drf_fast
from drf_fast.backends.reference.noise import cos_sin_turns, groups_per_image
from drf_fast.certification import stopping
from drf_fast.certification.noise import LevelNoise
from drf_fast.certification.stopping import Decide, certificate
from drf_fast.certification.votes import NoisyVotes
from drf_fast.runtime.level_table import level_table

ABSTAIN = drf_fast.SmoothedClassifier.ABSTAIN


# ------------------------------------------------------------------- classifiers that see the noise


def on_the_lattice(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where pixels 0 and G, divided by sigma, are r cos, r sin of an angle of 24 bits."""
    flat = rows.flatten(1)
    a, b = flat[:, 0] / SIGMA, flat[:, groups_per_image(flat.shape[1])] / SIGMA  # exact: 1/2
    turns = torch.atan2(b.double(), a.double()) / (2 * math.pi) * 2**24
    found = torch.zeros_like(a, dtype=torch.bool)
    for turn in (-1, 0, 1):
        cosine, sine = cos_sin_turns((turns.round().long() + turn) % 2**24 << 8)
        radius = (torch.hypot(a.double(), b.double())).float().view(torch.int32)
        for ulp in range(-4, 5):
            r = (radius + ulp).view(torch.float32)
            found |= (r * cosine == a) & (r * sine == b)
    return two_classes(found)


def of_coarse_pixels(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where the first two pixels are multiples of 2^-24, as all that 1 + noise reaches."""
    scaled = rows.flatten(1)[:, :2].double() * 2**24
    return two_classes((scaled == scaled.round()).all(1))


def reachable(rows: torch.Tensor) -> torch.Tensor:
    """Class 0 where some float n makes each pixel fl(128/255 + n) (Voracek, Hein 2023)."""
    y, a = rows.flatten(1), torch.tensor(128 / 255)
    near = (y - a).float()
    found = torch.zeros_like(y, dtype=torch.bool)
    for n in (near, near.nextafter(torch.tensor(9.0)), near.nextafter(torch.tensor(-9.0))):
        found |= a + n == y
    return two_classes(found.all(1))


def reachable_images() -> tuple[torch.Tensor, torch.Tensor]:
    """A grey image, and the same with all pixels one level down: 28/255 away."""
    return torch.full((1, 28, 28), 128 / 255), torch.full((1, 28, 28), 127 / 255)


def lattice_images() -> tuple[torch.Tensor, torch.Tensor]:
    """A black image, and the same with ONE pixel one level up."""
    x = torch.zeros(1, 28, 28)
    moved = x.clone()
    moved[0, 0, 0] = 1 / 255
    return x, moved


def coarse_images() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(1, 1, 8)
    x[0, 0, :2] = 1.0
    return x, torch.zeros(1, 1, 8)


CASES = {
    "lattice": (on_the_lattice, lattice_images),
    "reachability": (reachable, reachable_images),
    "granularity": (of_coarse_pixels, coarse_images),
}


@pytest.mark.parametrize("name", CASES)
def test_ordinary_noise_certifies_a_malicious_classifier_wrongly(name):
    base, images = CASES[name]
    x, moved = images()
    smoothed = classifier(base, sound=False)
    label, radius = smoothed.certify(x, 100, 10_000, ALPHA, 2000)
    assert label == 0 and radius > 1.5 > float((x - moved).norm())
    assert smoothed.predict(moved, 10_000, ALPHA, 2000) == 1  # inside the certified ball


@pytest.mark.parametrize("name", CASES)
def test_sound_noise_does_not(name):
    base, images = CASES[name]
    x, moved = images()
    smoothed = classifier(base, sound=True)
    n = 2000
    for first, second in ((x, moved), (moved, x)):
        label, radius = smoothed.certify(first, 100, n, ALPHA, 2000)
        inside = radius > float((x - moved).norm())
        other = smoothed.predict(second, n, ALPHA, 2000)
        assert not inside or other in (label, ABSTAIN)
    if name == "lattice":  # and what it certifies is the same for both
        assert smoothed.predict(x, n, ALPHA, 2000) == smoothed.predict(moved, n, ALPHA, 2000)


def wrong_share(sound: bool, images: int, level: int) -> float:
    n, alpha = 200, 0.05
    u = torch.full((images, 1, 1, 1), level, dtype=torch.uint8)
    smoothed = classifier(above, sound, seed=3)
    x = u if sound else u.float() / 255
    result = smoothed.certify_batch(x, 1, n, alpha, 8000, image_ids=torch.arange(images))
    true = (level - 99.5) / 255
    # Which class was selected does not matter: 1 is above its true radius as soon as it has one.
    return float(
        ((result.label == 0) & (result.radius > true) | (result.label == 1)).double().mean()
    )


@pytest.mark.parametrize("sound", [True, False])
def test_certificates_of_a_half_space_are_wrong_as_often_as_alpha_allows(sound):
    share = wrong_share(sound, 3000, 160)
    assert 0.02 < share < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.slow
@pytest.mark.parametrize("sound", [True, False])
def test_certificates_are_wrong_as_often_as_alpha_allows_in_20000_runs(sound):
    for level in (110, 160, 250):
        assert 0.01 < wrong_share(sound, 20_000, level) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)


# -------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("budget", ["fixed", "anytime"])
@pytest.mark.parametrize("count, n", [(100, 100), (10**5, 10**5), (51_000, 10**5), (10**9, 10**9)])
def test_bounds_are_lowered_by_the_distance_and_never_less(budget, count, n):
    distance = 784 * level_table(SIGMA).distance
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": budget}
    plain = certificate(count, n, n, **terms)
    sound = certificate(count, n, n, distance=distance, **terms)
    with mpmath.workdps(50):
        if budget == "fixed" and count == n:
            exact = mpmath.mpf(ALPHA) ** (mpmath.mpf(1) / n) - mpmath.mpf(distance)
            radius = -mpmath.mpf(SIGMA) * mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * exact)
            assert mpmath.mpf(sound.p_lower) <= exact
            assert mpmath.mpf(sound.radius) <= radius
            assert mpmath.mpf(sound.radius) > radius * (1 - mpmath.mpf(10) ** -7)
        lost = mpmath.mpf(plain.p_lower) - mpmath.mpf(sound.p_lower)
        assert mpmath.mpf(distance) * (1 - mpmath.mpf(10) ** -9) < lost + mpmath.mpf(2) ** -52
        assert lost < mpmath.mpf(distance) + mpmath.mpf(2) ** -51
    assert sound.radius < plain.radius


def test_a_large_distance_leaves_nothing():
    assert certificate(100, 100, 100, sigma=1, alpha=0.01, budget="fixed", distance=0.6).radius == 0
    proof = certificate(0, 100, 100, sigma=1, alpha=0.01, budget="anytime", distance=0.1)
    assert proof == (0.0, 0.0)


def test_a_yes_of_decide_proves_what_was_asked():
    distance = 1e-4  # large, so that forgetting it would show
    rule = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0, distance=distance)
    yes = next(t for t in range(100, 100_000, 10) if rule.stops(t, t))
    assert rule.final(yes, yes).radius >= 1.0
    plain = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0)
    first = next(t for t in range(100, 100_000) if plain.stops(t, t))
    late = Decide(n=100_000, sigma=SIGMA, alpha=ALPHA, radius=1.0, distance=0.02)
    assert not late.stops(first, first)


def test_predict_takes_the_distance_of_all_samples_off_alpha():
    assert stopping.reduced_alpha(0.01, 1000, 0.0) == 0.01
    left = stopping.reduced_alpha(0.01, 1000, 1e-6)
    assert left <= 0.01 - 1e-3 < left + 1e-12
    with pytest.raises(ValueError, match="raise alpha or lower n"):
        stopping.reduced_alpha(1e-3, 10**6, 1e-9)


@pytest.fixture
def far(monkeypatch) -> float:
    """As if sound noise were far from Gaussian noise: the true distance is below a log's digits."""
    distance = 1e-3
    monkeypatch.setattr(LevelNoise, "distance", lambda self, pixels: distance)
    return distance


def grey(count: int) -> torch.Tensor:
    return torch.full((count, 1, 2, 4), 160, dtype=torch.uint8)


def test_certificates_are_lowered_by_the_distance_of_their_noise(far):
    found = classifier(above, sound=True).certify_batch(grey(3), 10, 500, ALPHA, 64)
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": "fixed"}
    for count, p_lower, radius in zip(found.count, found.p_lower, found.radius, strict=True):
        proof = certificate(int(count), 500, 500, distance=far, **terms)
        assert (float(p_lower), float(radius)) == proof
        assert proof.radius < certificate(int(count), 500, 500, **terms).radius


@pytest.mark.parametrize("rule", [{}, {"radius": 0.05}, {"tolerance": 0.1}], ids=str)
def test_certificates_of_a_data_set_are_too(far, rule):
    found = drf_fast.certify_dataset(
        classifier(above, sound=True), grey(3), torch.zeros(3, dtype=torch.int64), n0=10, n=500,
        alpha=ALPHA, batch_size=64, progress=False, **rule,
    )  # fmt: skip
    budget = "anytime" if rule else "fixed"
    terms: dict[str, Any] = {"sigma": SIGMA, "alpha": ALPHA, "budget": budget}
    for count, n, p_lower, radius in zip(
        found.count, found.n, found.p_lower, found.radius, strict=True
    ):
        proof = certificate(int(count), int(n), 500, distance=far, **terms)
        assert (float(p_lower), float(radius)) == proof
        assert proof.radius < certificate(int(count), int(n), 500, **terms).radius


def test_predictions_have_less_of_alpha(monkeypatch):
    """Of alpha = 0.021 the distance of 200 samples leaves 0.001."""
    votes = next(k for k in range(100, 200) if binomtest(k, 200).pvalue <= 0.021)

    def of_the_first(rows: torch.Tensor) -> torch.Tensor:
        return two_classes(torch.arange(len(rows)) < votes)

    def predicted(sound: bool) -> int:
        x = grey(1)[0] if sound else grey(1)[0].float() / 255
        return classifier(of_the_first, sound).predict(x, 200, 0.021, 200)

    monkeypatch.setattr(NoisyVotes, "row_test", lambda self, x, size: None)
    assert predicted(False) == predicted(True) == 0
    monkeypatch.setattr(LevelNoise, "distance", lambda self, pixels: 1e-4)
    assert predicted(False) == 0 and predicted(True) == ABSTAIN
