"""Standard normals from a counter: the same bits on a GPU, on the CPU and in the interpreter.

``drf_fast/backends/reference/noise.py`` is the definition, with the reasons; this follows it
operation by operation. Triton's own randn, log, sin and cos round otherwise and use local memory.
Kernels that call this must be launched with ``enable_fp_fusion=False`` (``launch`` does): a fused
multiply-add rounds once where the definition rounds twice.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, key):
    """Philox4x32-10 (Salmon et al. 2011): four uint32 words from four, under an int64 key.

    Words may be scalars or blocks of broadcastable shapes, so that products that do not depend on
    the sample, a quarter of them, are hoisted out of the loop over samples.
    """
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        # One widening multiplication is one instruction; high and low halves apart would be two.
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def normal_radius(word):
    """sqrt(-2 log u) in float32 for u = word 2^-32 + 2^-33."""
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    # u = 2^exponent (1 + t) with 1 + t in [sqrt(1/2), sqrt(2)).
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    t = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = t * t
    p = t * 0.08672231435775757
    p = (p + -0.14378973841667175) * t
    p = (p + 0.14977958798408508) * t
    p = (p + -0.16564428806304932) * t
    p = (p + 0.19954879581928253) * t
    p = (p + -0.250016987323761) * t
    p = p + 0.33334165811538696
    log = (t * square) * p
    log = log - square * 0.5
    log = log + exponent * -0.00021219444170128554
    log = t + log
    log = log + exponent * 0.693359375
    return tl.sqrt_rn(log * -2.0)


@triton.jit
def cos_sin_turns(word):
    """cos(2 pi v) and sin(2 pi v) in float32 for v = (word >> 8) 2^-24."""
    turns = (word >> 8).to(tl.int32)
    # v = quadrant / 4 + x exactly, |x| <= 1/8.
    quadrant = (turns + 0x200000) >> 22
    x = (turns - (quadrant << 22)).to(tl.float32) * 5.9604644775390625e-08
    y = x * x
    c = y * 59.24596405029297
    c = (c + -85.44374084472656) * y
    c = (c + 64.93934631347656) * y
    c = y * (c + -19.739208221435547) + 1.0
    s = y * -75.24006652832031
    s = (s + 81.58812713623047) * y
    s = (s + -41.34162902832031) * y
    s = x * (s + 6.283185005187988)
    odd = (quadrant & 1) != 0
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    # Quadrants 1, 2 have a negative cosine, 2, 3 a negative sine: their bit 1 is the sign.
    return _signed(cosine, quadrant + 1), _signed(sine, quadrant)


@triton.jit
def _signed(value, quadrant):
    """-value where bit 1 of the quadrant is set."""
    sign = (quadrant << 30) & -0x80000000
    return (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def normals(group, sample, image, stream, key):
    """Four standard normals, float32: pixel j G + group of the noisy copy has number j.

    Args:
        group, sample, image: uint32 counter words, scalars or blocks of broadcastable shapes.
        stream: constexpr counter word.
        key: int64 scalar, the bits of the 64-bit seed.
    """
    w0, w1, w2, w3 = philox(group, sample, image, stream, key)
    r, s = normal_radius(w0), normal_radius(w2)
    cosine, sine = cos_sin_turns(w1)
    cosine2, sine2 = cos_sin_turns(w3)
    return r * cosine, r * sine, s * cosine2, s * sine2
