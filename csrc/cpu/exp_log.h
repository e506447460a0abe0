// exp and log for softmax, one name for both arithmetic types. Branch-free, made of +, -, *, / and
// integer operations only, so that compilers vectorise loops over them and every instruction set
// gives the same bits.
//
// float: relative error of exp_ at most 8.2e-8 (0.99 ulp), of log_ at most 8.2e-8 (0.86 ulp),
// measured against float64 over a dense set of all arguments. double: see common/elementary.h.
#pragma once

#include <cstdint>

#include "common/elementary.h"
#include "common/portable.h"
#include "cpu/floats.h"

namespace drf_fast::cpu {

using drf_fast::exp_;
using drf_fast::log_;

// e^x for x <= 88; 0 below -87.336, where the result would be subnormal; NaN for NaN.
DRF_INLINE float exp_(float x) {
  constexpr float kLowest = -87.3365402f;  // just above log 2^-126
  const float clamped = x < kLowest ? kLowest : x;
  // Adding 1.5 * 2^23 rounds to an integer; 127 more leave the biased exponent in the low bits.
  const float shifted = clamped * 1.44269502f + 12583039.0f;
  const float exponent = shifted - 12583039.0f;
  // log 2 in two parts; the first has 10 bits, so its product with the exponent is exact.
  const float r = (clamped - exponent * 0.693359375f) - exponent * -2.12194442e-4f;
  // (e^r - 1 - r) / r^2 for |r| <= 0.3472, to 3.1e-9 of e^r; in pairs: shorter latency.
  const float square = r * r;
  const float low = 0.166665196363f * r + 0.499999933805f;
  const float high = 0.00836883748981f * r + 0.0416683997865f;
  const float sum = low + square * (high + square * 0.00138143476414f);
  const float value = (1.0f + (r + square * sum)) * float_of_bits(bits_of_float(shifted) << 23);
  return x < kLowest ? 0.0f : value;
}

// Natural logarithm of a finite x >= 2^-126.
DRF_INLINE float log_(float x) {
  // x = 2^exponent (1 + t) with 1 + t in [sqrt(1/2), sqrt(2)).
  const std::uint32_t offset = bits_of_float(x) - 0x3f3504f3u;
  const std::int32_t whole = static_cast<std::int32_t>(offset) >> 23;
  const float t = float_of_bits((offset & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const float exponent = static_cast<float>(whole);
  // (log(1 + t) - t + t^2 / 2) / t^3, to 5.9e-9 of log(1 + t).
  float sum = -0.076357939273f;
  sum = sum * t + 0.127633996632f;
  sum = sum * t + -0.131605602836f;
  sum = sum * t + 0.142015410903f;
  sum = sum * t + -0.166232998462f;
  sum = sum * t + 0.200012339515f;
  sum = sum * t + -0.250008226671f;
  sum = sum * t + 0.333333316512f;
  const float square = t * t;
  const float low = (t * square * sum + exponent * -2.12194442e-4f) - 0.5f * square;
  return (t + low) + exponent * 0.693359375f;
}

}  // namespace drf_fast::cpu
