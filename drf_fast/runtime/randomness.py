"""All streams of noise and all reserved steps, so that no two purposes share random numbers.

The noise of an image is named by (key, stream, image, sample): ``functional.noise_key`` makes the
key from a seed and a step, and the stream is the last word of the counter. Changing a number here
changes the noise of every run and certificate.
"""

from __future__ import annotations

# The streams of noise, by purpose, and their counter words.
STREAM_WORDS = {"train": 0, "selection": 1, "estimation": 2, "prediction": 3}
STREAMS = tuple(STREAM_WORDS)

# Steps of ``noise_key`` that training's noise, which counts steps from 0, never reaches.
ATTACK = 2**62  # the noise of ``drf-fast attack``, so that it differs from any certificate's
TEACHER = 2**62 + 1  # the noise of the teacher's votes, which are a training target
INITIAL_WEIGHTS = 2**63
# From here on, one for each training step and process: dropout, random crops, all other random
# numbers that a network draws.
FIRST_NETWORK_STEP = 2**63 + 1
