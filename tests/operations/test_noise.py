"""noisy_repeat: the random number contract bit by bit, dtypes, layouts and the gradient."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import drf_fast
from drf_fast.backends.native import cpu, library
from drf_fast.backends.reference import noise as noise_reference

OPERATIONS = ("noisy_repeat", "noisy_repeat_backward")
# Not drf_fast's own table: certificates rest on these numbers, so a change there must show.
STREAMS = ("train", "selection", "estimation", "prediction")
F = np.float32

# ------------------------------------------------- an independent transcription of the contract


def philox(counter: tuple[Any, Any, Any, Any], key: int) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011) in unsigned 64-bit numpy."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> shift) ^ c1 ^ np.uint64(k0),
            b & low,
            (a >> shift) ^ c3 ^ np.uint64(k1),
            a & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """c0 + x (c1 + x (c2 + ...)), every operation rounded to float32."""
    result = np.full_like(x, F(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        result = result * x + F(coefficient)
    return result


def radius(word: np.ndarray) -> np.ndarray:
    """sqrt(-2 log u); the coefficients are part of the contract, written again here."""
    u = word.astype(F) * F(2.0**-32) + F(2.0**-33)
    mantissa, exponent = np.frexp(u)
    below = mantissa < F(0.70710677)
    mantissa = np.where(below, mantissa * F(2), mantissa)
    e = (exponent - below).astype(F)
    t = mantissa - F(1)
    square = t * t
    log = (t * square) * polynomial(
        t,
        0.33334165811538696,
        -0.250016987323761,
        0.19954879581928253,
        -0.16564428806304932,
        0.14977958798408508,
        -0.14378973841667175,
        0.08672231435775757,
    )
    log = log - square * F(0.5)
    log = log + e * F(-0.00021219444170128554)
    log = t + log
    log = log + e * F(0.693359375)
    return np.sqrt(log * F(-2))


def cos_sin(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi v: the nearest quarter turn is taken off first, which is exact."""
    v = (word >> np.uint64(8)).astype(F) * F(2.0**-24)
    quarter = np.floor(v * F(4) + F(0.5))
    x = v - quarter * F(0.25)
    y = x * x
    c = y * polynomial(
        y, -19.739208221435547, 64.93934631347656, -85.44374084472656, 59.24596405029297
    ) + F(1)
    s = x * polynomial(
        y, 6.283185005187988, -41.34162902832031, 81.58812713623047, -75.24006652832031
    )
    turn = quarter.astype(int) % 4
    return np.choose(turn, [c, -s, -c, s]), np.choose(turn, [s, c, -s, -c])


def contract(key: int, stream: int, image: int, sample: int, pixels: int) -> np.ndarray:
    """float32 (pixels,): the standard normals of one noisy copy."""
    groups = 8 * math.ceil(pixels / 32)
    w = philox((np.arange(groups), [sample], [image], [stream]), key)
    r, (c, s) = radius(w[0]), cos_sin(w[1])
    first = [r * c, r * s]
    r, (c, s) = radius(w[2]), cos_sin(w[3])
    return np.concatenate([*first, r * c, r * s])[:pixels]


def bits(values: Any) -> list[int]:
    return np.asarray(values, dtype=F).view(np.int32).reshape(-1).tolist()


def noise(pixels: int, m: int = 1, images: int = 1, **options: Any) -> torch.Tensor:
    """Standard normals (images * m, pixels) of the code under test."""
    options = {"seed": 7, "image_ids": torch.arange(images), **options}
    return drf_fast.noisy_repeat(torch.zeros(images, pixels), 1.0, m, **options)


# ------------------------------------------------------------------------------- the generator

RANDOM123 = [  # kat_vectors of Random123: counter, key, output
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", RANDOM123)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    signed = key - 2**64 if key >= 2**63 else key
    words = noise_reference.philox(
        tuple(torch.tensor(word) for word in counter),  # type: ignore[arg-type]
        torch.tensor(signed),
    )
    assert tuple(int(word) for word in words) == expected
    assert tuple(int(word) for word in philox(counter, key)) == expected


def test_every_instruction_set_gives_the_same_normals(instruction_sets):
    names: dict[str, Any] = {"images": 2, "sample_offset": 2**32 - 9, "stream": "estimation"}
    for pixels in (1, 33, 1000):
        with drf_fast.use_backend("reference"):
            expected = noise(pixels, 5, **names)
        for isa in instruction_sets:
            library.load().use_isa(isa)
            with drf_fast.use_backend("native"):
                assert torch.equal(noise(pixels, 5, **names), expected), isa


def test_the_first_normals_follow_from_a_known_answer(backend):
    w = RANDOM123[0][2]
    u = float(F(w[0])) * 2.0**-32 + 2.0**-33
    v = (w[1] >> 8) * 2.0**-24
    expected = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)
    assert float(noise(1, seed=0)) == pytest.approx(expected, abs=1.3e-6)


@pytest.mark.parametrize("pixels", [1, 7, 31, 32, 33, 784, 3072])
@pytest.mark.parametrize("m", [1, 3, 16])
def test_every_bit_equals_the_transcription(backend, pixels, m):
    generator = torch.Generator().manual_seed(pixels)
    x = torch.rand(3, pixels, generator=generator)
    ids, key, offset = [0, 2**32 - 1, 12345], 2**64 - 3 * pixels, 2**32 - 16 - m
    for number, stream in enumerate(STREAMS):
        got = drf_fast.noisy_repeat(
            x,
            0.3,
            m,
            seed=key,
            image_ids=torch.tensor(ids),
            sample_offset=offset,
            stream=stream,
        )
        expected = [
            x[b].numpy() + F(0.3) * contract(key, number, ids[b], offset + i, pixels)
            for b, i in itertools.product(range(3), range(m))
        ]
        assert bits(got) == bits(expected)


def test_cos_and_sin_are_within_1e_6_for_every_one_of_the_2_24_angles():
    worst = 0.0
    for start in range(0, 2**24, 2**21):
        turns = torch.arange(start, start + 2**21)
        cosine, sine = noise_reference.cos_sin_turns((turns << 8) + 77)
        angle = turns.double() * (2 * math.pi * 2.0**-24)
        worst = max(worst, float((cosine - angle.cos()).abs().max()))
        worst = max(worst, float((sine - angle.sin()).abs().max()))
    assert worst < 1e-7  # measured 9.55e-8; the contract promises 1e-6


def dense_words() -> torch.Tensor:
    """Both ends, a stride over all, and the neighbours of every power of two and its sqrt."""
    corners = [int(2.0 ** (e / 2)) for e in range(2, 64)]
    return torch.cat(
        [
            torch.arange(2**18),
            torch.arange(2**32 - 2**18, 2**32),
            torch.arange(0, 2**32, 2039),
            *[torch.arange(c - 600, c + 600) for c in corners if c > 600],
        ]
    )


def exact_radius(words: torch.Tensor) -> torch.Tensor:
    u = (words.float() * 2.0**-32 + 2.0**-33).double()
    return (-2 * u.log()).sqrt()


def test_the_radius_is_within_1e_6_over_its_whole_range():
    words = dense_words()
    got, exact = noise_reference.normal_radius(words), exact_radius(words)
    assert got.dtype == torch.float32 and bool(got.isfinite().all())
    assert float((got - exact).abs().max()) < 4e-7  # measured 3.96e-7; the contract promises 1e-6
    assert float(got.max()) == pytest.approx(math.sqrt(66 * math.log(2)), abs=1e-6)
    assert float(got.min()) == 0.0


def test_the_normal_is_within_1_3e_6_for_the_worst_radii_at_all_sorts_of_angles():
    words = dense_words()
    error = (noise_reference.normal_radius(words) - exact_radius(words)).abs()
    words = torch.cat([words[error.argsort(descending=True)[:500]], torch.arange(500)])
    turns = torch.cat(
        [torch.arange(0, 2**24, 16381), *[torch.arange(k << 21, (k << 21) + 64) for k in range(8)]]
    )
    cosine, sine = noise_reference.cos_sin_turns(turns << 8)
    r, exact = noise_reference.normal_radius(words).unsqueeze(1), exact_radius(words).unsqueeze(1)
    angle = turns.double() * (2 * math.pi * 2.0**-24)
    assert float((r * cosine - exact * angle.cos()).abs().max()) < 1.3e-6
    assert float((r * sine - exact * angle.sin()).abs().max()) < 1.3e-6


# ------------------------------------------------------------------- what the noise depends on


def test_rows_do_not_depend_on_batch_size_order_or_neighbours(backend):
    together = noise(40, 3, image_ids=torch.tensor([5, 9, 2, 70]), images=4).reshape(4, 3, 40)
    order = [3, 1, 0, 2]
    shuffled = noise(40, 3, image_ids=torch.tensor([5, 9, 2, 70])[order], images=4)
    assert torch.equal(shuffled.reshape(4, 3, 40), together[order])
    for row, image in enumerate([5, 9, 2, 70]):
        assert torch.equal(noise(40, 3, image_ids=torch.tensor([image])), together[row])


def test_rows_do_not_depend_on_how_a_large_call_is_cut_into_chunks(backend):
    # 6 * 2^15 groups: more than any implementation will hold in one piece. A kernel's pieces are
    # its programs, which are smaller.
    pixels = 2**11 if backend == "triton" else 2**15
    whole = noise(pixels, 12, images=2)
    parts = [noise(pixels, 4, images=2, sample_offset=k).reshape(2, 4, -1) for k in (0, 4, 8)]
    assert torch.equal(whole.reshape(2, 12, -1), torch.cat(parts, dim=1))


def test_sample_offset_k_gives_the_rows_from_k_on(backend):
    whole = noise(33, 16)
    for offset in (0, 1, 5, torch.tensor(11)):
        assert torch.equal(noise(33, 5, sample_offset=offset), whole[int(offset) :][:5])


def test_a_longer_image_is_not_a_shorter_one_continued_but_shapes_of_one_size_agree(backend):
    x = torch.rand(2, 3, 8, 8)
    ids = torch.tensor([4, 5])
    flat = drf_fast.noisy_repeat(x.flatten(1), 0.25, 2, seed=1, image_ids=ids)
    assert torch.equal(drf_fast.noisy_repeat(x, 0.25, 2, seed=1, image_ids=ids).flatten(1), flat)


def test_streams_keys_images_and_samples_never_repeat(backend):
    rows = torch.cat(
        [
            *[noise(64, 4, images=3, stream=stream) for stream in STREAMS],
            *[noise(64, 4, images=3, seed=key) for key in (8, 7 + 2**32, -7, 2**63)],
        ]
    )
    assert len({tuple(row) for row in rows.tolist()}) == len(rows) == 8 * 12
    limit = 6 / math.sqrt(64)
    assert float((torch.corrcoef(rows) - torch.eye(len(rows))).abs().max()) < limit


def test_a_negative_seed_names_the_same_64_bits_as_its_unsigned_form(backend):
    assert torch.equal(noise(20, seed=-1), noise(20, seed=2**64 - 1))
    assert torch.equal(noise(20, seed=torch.tensor(-1)), noise(20, seed=-1))


def test_torch_manual_seed_governs_the_noise_without_a_seed(backend):
    x = torch.zeros(2, 50)
    torch.manual_seed(3)
    first, second = drf_fast.noisy_repeat(x, 1.0, 2), drf_fast.noisy_repeat(x, 1.0, 2)
    torch.manual_seed(3)
    again = drf_fast.noisy_repeat(x, 1.0, 2)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_an_explicit_seed_leaves_the_global_generators_alone(backend):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore
    noise(50, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]


# ------------------------------------------------------------------ dtypes, layouts, gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded_once(backend, dtype):
    x = torch.rand(2, 45).to(dtype)
    ids = torch.arange(2)
    z = noise(45, 3, images=2)
    expected = x.float().repeat_interleave(3, 0) + torch.tensor(0.7) * z
    got = drf_fast.noisy_repeat(x, 0.7, 3, seed=7, image_ids=ids)
    assert got.dtype == dtype and torch.equal(got, expected.to(dtype))


def test_float64_is_computed_in_float64(backend):
    x = torch.rand(2, 45, dtype=torch.float64)
    z = noise(45, 3, images=2).numpy().astype(np.float64)
    got = drf_fast.noisy_repeat(x, 0.7, 3, seed=7, image_ids=torch.arange(2))
    assert got.dtype == torch.float64
    assert np.array_equal(got.numpy(), np.repeat(x.numpy(), 3, axis=0) + 0.7 * z)


def test_sigma_may_be_a_tensor_of_any_dtype(backend):
    x, ids = torch.rand(2, 20), torch.arange(2)
    number = drf_fast.noisy_repeat(x, 0.25, 2, seed=7, image_ids=ids)
    for sigma in (torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        assert torch.equal(drf_fast.noisy_repeat(x, sigma, 2, seed=7, image_ids=ids), number)


def test_channels_last_stays_and_changes_no_value(backend):
    x, ids = torch.rand(2, 3, 6, 5), torch.tensor([3, 8])
    options: dict[str, Any] = {"seed": 7, "image_ids": ids}
    plain = drf_fast.noisy_repeat(x, 0.5, 3, **options)
    assert plain.is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    got = drf_fast.noisy_repeat(last, 0.5, 3, **options)
    assert got.is_contiguous(memory_format=torch.channels_last) and torch.equal(got, plain)
    strided = torch.rand(2, 3, 6, 10)[..., ::2].copy_(x)
    assert torch.equal(drf_fast.noisy_repeat(strided, 0.5, 3, **options), plain)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_is_the_sum_over_the_copies(backend, memory_format):
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=memory_format).requires_grad_()
    upstream = torch.rand(10, 3, 4, 4).contiguous(memory_format=memory_format)
    drf_fast.noisy_repeat(x, 0.5, 5).backward(upstream)
    assert x.grad is not None
    expected = upstream.double().reshape(2, 5, 3, 4, 4).sum(1)
    assert torch.allclose(x.grad.double(), expected, rtol=1e-6, atol=0)
    assert x.grad.is_contiguous(memory_format=memory_format)


def test_gradcheck(backend):
    x = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(2)
    torch.autograd.gradcheck(
        lambda x: drf_fast.noisy_repeat(x, 0.5, 3, seed=7, image_ids=ids),
        (x,),
        fast_mode=backend == "triton",  # a call in the interpreter is slow
    )


def test_a_half_precision_gradient_is_summed_in_float32(backend):
    x = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.full((257, 4), 1.0, dtype=torch.bfloat16)
    upstream[0] = 256.0  # a bfloat16 sum would stay at 256
    drf_fast.noisy_repeat(x, 0.5, 257).backward(upstream)
    assert x.grad is not None and x.grad.tolist() == [[512.0] * 4]


def test_a_request_for_a_second_derivative_raises(backend):
    x = torch.rand(2, 5, requires_grad=True)
    out = drf_fast.noisy_repeat(x, 0.5, 2)
    with pytest.raises(RuntimeError, match="can be differentiated once, got create_graph=True"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


@pytest.mark.skipif(not library.available(), reason="needs the C++ core")
def test_the_core_reads_no_ids_that_are_elsewhere():
    number = torch.tensor(0.5, dtype=torch.float64)
    key = torch.tensor(1)
    elsewhere = torch.arange(2, device="meta")
    with pytest.raises(ValueError, match=r"ids of torch.int64 \(2,\) on meta"):
        cpu.noisy_repeat(torch.zeros(2, 4), number, key, elsewhere, key, 3, "train")


def test_a_vectorised_jacobian_is_a_repeated_identity(backend):
    x = torch.rand(2, 3, dtype=torch.float64)
    options: dict[str, Any] = {"seed": 7, "image_ids": torch.arange(2)}
    jacobian = torch.autograd.functional.jacobian(
        lambda x: drf_fast.noisy_repeat(x, 1.0, 4, **options), x, vectorize=True
    )
    expected = torch.eye(6, dtype=torch.float64).reshape(2, 3, 2, 3).repeat_interleave(4, 0)
    assert torch.equal(jacobian, expected)
