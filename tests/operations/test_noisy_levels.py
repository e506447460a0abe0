"""noisy_levels: the table against 50 digits, the contract bit by bit, and the distribution."""

from __future__ import annotations

import bisect
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

import drf_fast
from drf_fast.backends.native import library
from drf_fast.backends.reference.noise import level_words, levels_of_words
from drf_fast.runtime import level_table as level_tables
from drf_fast.runtime.level_table import bits_of, level_table

OPERATIONS = ("noisy_levels",)
SIGMAS = (0.12, 0.25, 0.5, 1.0, 2.0)
STREAMS = ("train", "selection", "estimation", "prediction")
IDS = torch.tensor([0, 2**32 - 1, 12345])
CPU = torch.device("cpu")


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def noise(pixels: int, m: int, sigma: float = 0.5, batch: int = 1, **options: Any) -> torch.Tensor:
    """R, int64 (batch * m, pixels)."""
    options = {"seed": 7, "image_ids": torch.arange(batch), **options}
    u = torch.zeros(batch, pixels, dtype=torch.uint8)
    return (drf_fast.noisy_levels(u, sigma, m, **options).double() * 255).round().long()


# -------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_threshold_is_the_nearest_to_the_truth_at_50_digits(sigma):
    thresholds = level_table(sigma).thresholds.tolist()[::-1]
    with mpmath.workdps(50):
        scale = 255 * mpmath.mpf(sigma)
        unit = mpmath.mpf(2) ** 64
        true = [
            mpmath.ncdf(-(j - mpmath.mpf(1) / 2) / scale) for j in range(1, len(thresholds) + 2)
        ]
        for threshold, p in zip(thresholds, true, strict=False):
            assert abs(threshold - p * unit) <= 0.5
        assert true[-1] * unit < 0.5  # none is missing
        # The total variation distance, from its definition: half the sum over all integers.
        ours = [mpmath.mpf(t) / unit for t in [*thresholds, 0]]
        pairs = [(1 - 2 * ours[0], 1 - 2 * true[0])]
        for j in range(len(thresholds)):
            pairs += 2 * [(ours[j] - ours[j + 1], true[j] - true[j + 1])]
        distance = (sum(abs(a - b) for a, b in pairs) + 2 * true[-1]) / 2
        stated = mpmath.mpf(level_table(sigma).distance)
        assert distance <= stated <= distance * (1 + mpmath.mpf(10) ** -9)
        assert stated < 1e-16


@pytest.mark.parametrize("z", [1e-9, 0.3, 1.0, 4.0, 9.1, 9.99])
def test_phi_is_within_the_error_that_is_relied_on(z):
    with mpmath.workdps(60):
        exact = mpmath.ncdf(-mpmath.mpf(z))
        got = mpmath.mpf(level_tables._tail(int(mpmath.mpf(z) * 2**192))) / mpmath.mpf(2) ** 192
        assert abs(got - exact) < mpmath.mpf(2) ** -110


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [1e-6, 4e-4, 0.002, 0.12, 0.5, 2.0, 16.0])
def test_the_guide_answers_as_a_search_does(sigma):
    table = level_table(sigma)
    thresholds, rows = table.thresholds.tolist(), table.guide.tolist()
    bits = bits_of(table.guide, CPU)
    generator = np.random.default_rng(1)
    values = [
        int(v) >> int(s)
        for v, s in zip(
            generator.integers(2**63, size=3000), generator.integers(63, size=3000), strict=True
        )
    ]
    near = thresholds if len(thresholds) < 6000 else thresholds[::7]
    values += [0, 1, 2, 2**63 - 1] + [t + d for t in near for d in (-1, 0, 1)]
    for value in values:
        octave = max(value, 1).bit_length() - 1
        rest = (value - (1 << octave) << bits) >> octave if value else 0
        threshold, counts = rows[(octave << bits) + rest]
        got = counts >> 16 if value < threshold else counts & 0xFFFF
        assert got == len(thresholds) - bisect.bisect_right(thresholds, value)


def test_the_table_is_made_once_whatever_names_the_cpu():
    assert level_table(0.5, torch.device("cpu")) is level_table(0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda guide: guide[:-1],
        lambda guide: guide[:, :1],
        lambda guide: guide[:0],
        lambda guide: guide.int(),
        lambda guide: guide.to("meta"),
        lambda guide: guide.reshape(-1),
        lambda guide: guide[:63],  # of no bit
        lambda guide: torch.empty((63 << 23, 2), dtype=torch.int64, device="meta"),
    ],
)
def test_no_other_tensor_is_taken_for_a_guide(change):
    good = level_table(0.5).guide
    bad = change(good)
    device = CPU if bad.numel() < 2**20 else bad.device  # the last has as many bits as nobody reads
    with pytest.raises(ValueError, match=r"expected an int64 guide of level_table on (cpu|meta)"):
        bits_of(bad, device)
    assert good.shape == (63 << bits_of(good, CPU), 2)
    assert bits_of(good.to("meta"), torch.device("meta")) == bits_of(good, CPU)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 16.1, math.nan, math.inf, torch.tensor(17.0)])
def test_a_sigma_without_a_table_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        drf_fast.noisy_levels(images(1, 4), sigma, 1)


def test_images_that_are_not_of_8_bits_are_refused():
    for x in (torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.int16)):
        with pytest.raises(TypeError, match="uint8"):
            drf_fast.noisy_levels(x, 0.5, 2)
    with pytest.raises(TypeError, match="dtype must be one of"):
        drf_fast.noisy_levels(images(2, 4), 0.5, 2, dtype=torch.float64)


# -------------------------------------------------------------------------------------- the bits


def philox(counter: tuple[int, int, int, int], key: int) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011) in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def contract(
    key: int, stream: int, image: int, sample: int, pixels: int, sigma: float
) -> list[int]:
    """R of a row, from the words of the counter and a count over thresholds."""
    groups = 8 * math.ceil(pixels / 32)
    table = level_table(sigma).thresholds.tolist()
    out = []
    for pixel in range(pixels):
        j, group = divmod(pixel, groups)
        words = philox((group, sample, image, stream + 4 * (1 + j // 2)), key)
        word = words[2 * (j % 2)] << 32 | words[2 * (j % 2) + 1]
        upper = word >= 2**63
        value = 2**64 - 1 - word if upper else word
        beyond = len(table) - bisect.bisect_right(table, value)
        out.append(beyond if upper else -beyond)
    return out


@pytest.mark.parametrize("pixels", [1, 7, 31, 32, 33, 100])
def test_every_bit_equals_the_transcription(backend, pixels):
    u, key, offset = images(3, pixels), 2**64 - 3 * pixels, 2**32 - 18
    for number, stream in enumerate(STREAMS):
        got = drf_fast.noisy_levels(
            u, 0.5, 2, seed=key, image_ids=IDS, sample_offset=offset, stream=stream
        )
        rows = [
            u[b].numpy().astype(int)
            + np.array(contract(key, number, int(IDS[b]), offset + i, pixels, 0.5))
            for b in range(3)
            for i in range(2)
        ]
        expected = np.stack(rows).astype(np.float32) / np.float32(255)
        assert np.array_equal(got.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded_once(backend, dtype):
    names: dict[str, Any] = {"seed": 1, "image_ids": IDS}
    u = images(3, 1, 7, 9)
    wide = drf_fast.noisy_levels(u, 0.5, 3, **names)
    assert torch.equal(drf_fast.noisy_levels(u, 0.5, 3, dtype=dtype, **names), wide.to(dtype))


def test_channels_last_stays_and_changes_no_value(backend):
    names: dict[str, Any] = {"seed": 1, "image_ids": IDS}
    u = images(3, 3, 9, 7)
    plain = drf_fast.noisy_levels(u, 0.5, 2, **names)
    last = drf_fast.noisy_levels(u.contiguous(memory_format=torch.channels_last), 0.5, 2, **names)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, plain)
    strided = torch.zeros(3, 3, 9, 14, dtype=torch.uint8)[..., ::2].copy_(u)
    assert torch.equal(drf_fast.noisy_levels(strided, 0.5, 2, **names), plain)


def test_a_level_of_the_image_is_a_level_of_the_output_and_moves_no_noise(backend):
    # What soundness rests on: rounding commutes with adding whole levels.
    names: dict[str, Any] = {"seed": 5, "image_ids": torch.tensor([9])}
    at_zero = noise(100, 20, seed=5, image_ids=torch.tensor([9]))
    for level in (1, 128, 255):
        u = torch.full((1, 100), level, dtype=torch.uint8)
        got = drf_fast.noisy_levels(u, 0.5, 20, **names)
        assert torch.equal(got, (at_zero + level).float() / 255)


def test_rows_do_not_depend_on_batch_size_order_or_offset(backend):
    together = noise(40, 6, batch=4).reshape(4, 6, 40)
    for row, image in enumerate(range(4)):
        one = noise(40, 3, image_ids=torch.tensor([image]), sample_offset=3)
        assert torch.equal(one, together[row, 3:])


@pytest.mark.parametrize("sigma", [0.12, 2.0])
def test_every_instruction_set_gives_the_same_levels(instruction_sets, sigma):
    names: dict[str, Any] = {"seed": 3, "image_ids": IDS, "sample_offset": 2**32 - 18}
    for pixels in (1, 33, 1000):
        with drf_fast.use_backend("reference"):
            expected = drf_fast.noisy_levels(images(3, pixels), sigma, 5, **names)
        for isa in instruction_sets:
            library.load().use_isa(isa)
            with drf_fast.use_backend("native"):
                got = drf_fast.noisy_levels(images(3, pixels), sigma, 5, **names)
            assert torch.equal(got, expected), isa


@pytest.mark.slow
def test_words_that_the_high_half_does_not_decide_are_decided(instruction_sets):
    # At sigma 2 some of these words share their high half with a threshold, and some are smaller
    # than the vectors' buckets: the rare way through the C++ code.
    pixels, m, key = 32_768, 250, torch.tensor(3)
    ids, samples = torch.zeros(m, dtype=torch.int64), torch.arange(m)
    table = level_table(2.0)
    ties, small, expected = 0, 0, []
    for part in samples.split(25):
        high, low = level_words(key, ids[part], part, 2, pixels)
        value = torch.where(high >= 2**31, high ^ 0xFFFFFFFF, high)
        ties += int(torch.isin(value, table.thresholds >> 32).sum())
        small += int((value < 2 ** bits_of(table.guide, CPU)).sum())
        expected.append(levels_of_words(high, low, table.thresholds))
    assert ties > 10 and small > 0
    for isa in instruction_sets:
        library.load().use_isa(isa)
        with drf_fast.use_backend("native"):
            got = noise(pixels, m, 2.0, seed=3, image_ids=ids[:1], stream="estimation")
        assert torch.equal(got, torch.cat(expected))


# ------------------------------------------------------------------------------- the distribution


def chi_squared(draws: int, sigma: float) -> float:
    """p-value of R against its probabilities, the levels beyond 4.5 s in one cell a side."""
    scale = 255 * sigma
    edge = int(4.5 * scale)
    counts = torch.zeros(2 * edge + 3, dtype=torch.int64)
    pixels, m = 10_000, 100
    for offset in range(0, draws // pixels, m):
        r = noise(pixels, m, sigma, seed=11, sample_offset=offset, stream="estimation")
        counts += torch.bincount(
            r.clamp(-edge - 1, edge + 1).flatten() + edge + 1, minlength=2 * edge + 3
        )
    steps = scipy.stats.norm.cdf((np.arange(-edge - 1, edge + 1) + 0.5) / scale)
    expected = np.diff(np.concatenate([[0.0], steps, [1.0]])) * int(counts.sum())
    assert counts.sum() == draws
    return float(scipy.stats.chisquare(counts.numpy(), expected).pvalue)


@pytest.mark.parametrize("sigma", [0.12, 0.5])
def test_levels_have_their_probabilities(sigma):
    assert 1e-3 < chi_squared(10**7, sigma) < 1 - 1e-3  # the key is fixed: no chance is left


@pytest.mark.slow
@pytest.mark.exhaustive
def test_levels_have_their_probabilities_in_10_to_the_8_draws():
    assert 1e-3 < chi_squared(10**8, 0.5) < 1 - 1e-3


def test_pixels_samples_images_streams_and_the_normals_are_independent():
    count, m = 1000, 40
    rows = [noise(count, m, batch=3, stream=stream) for stream in STREAMS]
    u = torch.zeros(3, count)
    rows.append(drf_fast.noisy_repeat(u, 0.5, m, seed=7, image_ids=torch.arange(3)) * 255)
    values = torch.cat([part.double() for part in rows])
    assert len({tuple(row) for row in values.tolist()}) == len(values) == 15 * m
    limit = 6 / math.sqrt(count)  # 180,000 pairs: 5.2 standard deviations are to be expected
    across = torch.corrcoef(values)
    assert float((across - torch.eye(len(values))).abs().max()) < limit
    pixels = torch.corrcoef(values.T)  # of 600 values each; a million pairs
    assert float((pixels - torch.eye(count)).abs().max()) < 6 / math.sqrt(len(values))


def test_pairs_of_pixels_of_one_counter_block_are_independent():
    # The pairs p, p + G whose ordinary normals lie on a lattice: quadrants and both sizes.
    groups, m = 8 * math.ceil(784 / 32), 2000
    r = noise(784, m)
    for first, second in ((0, 1), (0, 2), (1, 2), (2, 3)):
        run = min(groups, 784 - 3 * groups)
        a, b = (r[:, j * groups : j * groups + run].flatten() for j in (first, second))
        cells = torch.bucketize(a.double(), torch.tensor([-86.0, 0, 86]).double()) * 4
        cells += torch.bucketize(b.double(), torch.tensor([-86.0, 0, 86]).double())
        table = torch.bincount(cells, minlength=16).reshape(4, 4).numpy()
        assert float(scipy.stats.chi2_contingency(table)[1]) > 1e-4  # type: ignore[arg-type]
