"""The noise is that of independent standard normals: moments, distribution, tails, correlations.

All keys are fixed, so nothing here fails by chance. The bits are the same on every backend, which
tests/operations/test_noise.py checks; here whichever is the fastest draws them.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

import drf_fast


def noise(pixels: int, m: int, *, images: int, seed: int) -> torch.Tensor:
    """float64 (images * m, pixels) standard normals."""
    x, ids = torch.zeros(images, pixels), torch.arange(images)
    return drf_fast.noisy_repeat(x, 1.0, m, seed=seed, image_ids=ids).double()


SAMPLE = 2**21


@pytest.fixture(scope="module")
def normals() -> torch.Tensor:
    """float64 (2048, 1024): 64 images of 32 samples, under a fixed key, by the reference."""
    return noise(1024, 32, images=64, seed=20240501)


def test_moments_are_those_of_the_normal_distribution(normals):
    # Standard errors of the first moments of N(0, 1): E z^2k = 1, 3, 15, 105, 945 ...
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        error = float(normals.pow(power).mean()) - mean
        assert abs(error) < 4 * math.sqrt(variance / SAMPLE), power


def test_the_distribution_passes_kolmogorov_smirnov(normals):
    assert scipy.stats.kstest(normals.flatten().numpy(), "norm").pvalue > 0.01


def test_tails_hold_their_share(normals):
    for bound in (2.0, 3.0, 4.0, 4.5):
        expected = SAMPLE * 2 * scipy.stats.norm.sf(bound)
        got = int((normals.abs() > bound).sum())
        assert abs(got - expected) < 4 * math.sqrt(expected), bound
    assert 4.8 < float(normals.abs().max()) < 6.2


def test_the_four_normals_of_a_group_are_uncorrelated_also_in_their_squares(normals):
    groups = normals.reshape(-1, 4, 256).transpose(0, 1).reshape(4, -1)
    limit = 4.5 / math.sqrt(groups.shape[1])
    for values in (groups, groups.square()):
        correlation = torch.corrcoef(values) - torch.eye(4)
        assert float(correlation.abs().max()) < limit


@pytest.mark.parametrize("lag", [1, 2, 7, 8, 28, 32, 256])
def test_pixels_at_a_distance_are_uncorrelated(normals, lag):
    left, right = normals[:, lag:], normals[:, :-lag]
    for a, b in ((left, right), (left.square() - 1, right.square() - 1)):
        limit = 4.5 * float(b.square().mean()) / math.sqrt(a.numel())
        assert abs(float((a * b).mean())) < limit


def test_samples_and_images_are_uncorrelated(normals):
    cube = normals.reshape(64, 32, 1024)
    for a, b in ((cube[1:], cube[:-1]), (cube[:, 1:], cube[:, :-1])):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(a.numel())
    means = cube.mean(2)  # one number for each noisy copy: no image and no sample is favoured
    assert float(means.abs().max()) < 5 / math.sqrt(1024)


def test_consecutive_keys_and_steps_are_uncorrelated():
    for keys in (range(30), [drf_fast.noise_key(1, step) for step in range(30)]):
        rows = torch.cat([noise(4096, 1, images=1, seed=key) for key in keys])
        correlation = torch.corrcoef(rows) - torch.eye(30)
        assert float(correlation.abs().max()) < 4.9 / math.sqrt(4096)
