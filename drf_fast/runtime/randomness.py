"""Which random numbers are for what: every stream of noise and every reserved step, once.

The noise of an image is named by (key, stream, image, sample): ``functional.noise_key`` makes the
key from a seed and a step, and the stream is the last word of the counter. So no two purposes
share random numbers. Changing a number here changes the noise of every run and certificate.
"""

from __future__ import annotations

# The streams of noise, by purpose, and their counter words.
STREAM_WORDS = {"train": 0, "selection": 1, "estimation": 2, "prediction": 3}
STREAMS = tuple(STREAM_WORDS)

# Steps of ``noise_key`` that training's noise, which counts steps from 0, never takes.
ATTACK = 2**62  # the key of all that ``drf-fast attack`` draws, so no certificate shares its noise
TEACHER = 2**62 + 1  # the key of the votes that are a training target
INITIAL_WEIGHTS = 2**63
# And all above: one for each step and process. Dropout, random crops, whatever a network draws.
FIRST_NETWORK_STEP = 2**63 + 1
