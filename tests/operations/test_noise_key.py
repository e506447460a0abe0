"""noise_key: SplitMix64, so that the keys of one run never repeat."""

from __future__ import annotations

import drf_fast


def test_noise_key_is_the_splitmix64_sequence():
    # The published outputs of SplitMix64 seeded with 0; its finalizer maps 0 to 0.
    assert drf_fast.noise_key(0, 0) == 0
    assert [drf_fast.noise_key(0, step) % 2**64 for step in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_noise_keys_of_steps_and_of_seeds_differ():
    keys = {drf_fast.noise_key(seed, step) for seed in range(20) for step in range(2000)}
    assert len(keys) == 40000 and all(-(2**63) <= key < 2**63 for key in keys)
    assert drf_fast.noise_key(-1, 5) == drf_fast.noise_key(2**64 - 1, 5)
    assert drf_fast.noise_key(3, 2**64 - 1) != drf_fast.noise_key(3, 0)
