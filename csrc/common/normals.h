// Standard normals from random words by Box and Muller (1958), the same bits on every machine.
//
// drf_fast/backends/reference/noise.py is the definition; this is its transcription, operation by
// operation. log, cos and sin are polynomials in float32 made of +, -, * and sqrt, each rounded to
// nearest and none contracted (-ffp-contract=off, --fmad=false), which IEEE 754 fixes completely.
//
// Errors against exact arithmetic, measured over all 2^24 angles and a dense set of radii:
// cos, sin 9.6e-8; r 4.7e-7 (r <= 6.77).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable.h"

namespace drf_fast {

// r = sqrt(-2 log u), u = word 2^-32 + 2^-33 in (0, 1].
DRF_HD DRF_INLINE float normal_radius(uint32_t word) {
  const float u = static_cast<float>(word) * 0x1p-32f + 0x1p-33f;
  int32_t bits;
  std::memcpy(&bits, &u, sizeof(bits));
  // u = 2^exponent (1 + t) with 1 + t in [sqrt(1/2), sqrt(2)).
  const int32_t shifted = bits - 0x3F3504F3;
  const float exponent = static_cast<float>(shifted >> 23);
  bits = (shifted & 0x7FFFFF) + 0x3F3504F3;
  float t;
  std::memcpy(&t, &bits, sizeof(t));
  t = t - 1.0f;
  const float square = t * t;
  float p = t * 0.08672231435775757f;
  p = (p + -0.14378973841667175f) * t;
  p = (p + 0.14977958798408508f) * t;
  p = (p + -0.16564428806304932f) * t;
  p = (p + 0.19954879581928253f) * t;
  p = (p + -0.250016987323761f) * t;
  p = p + 0.33334165811538696f;
  float log = (t * square) * p;
  log = log - square * 0.5f;
  log = log + exponent * -0.00021219444170128554f;
  log = t + log;
  log = log + exponent * 0.693359375f;
  return std::sqrt(log * -2.0f);
}

// cos(2 pi v) and sin(2 pi v), v = (word >> 8) 2^-24; v = quadrant/4 + x exactly, |x| <= 1/8.
DRF_HD DRF_INLINE void cos_sin_turns(uint32_t word, float& cosine, float& sine) {
  const int32_t turns = static_cast<int32_t>(word >> 8);
  const int32_t quadrant = (turns + (1 << 21)) >> 22;
  const float x = static_cast<float>(turns - (quadrant << 22)) * 0x1p-24f;
  const float y = x * x;
  float c = y * 59.24596405029297f;
  c = (c + -85.44374084472656f) * y;
  c = (c + 64.93934631347656f) * y;
  c = y * (c + -19.739208221435547f) + 1.0f;
  float s = y * -75.24006652832031f;
  s = (s + 81.58812713623047f) * y;
  s = (s + -41.34162902832031f) * y;
  s = x * (s + 6.283185005187988f);
  const float real = quadrant & 1 ? s : c;
  const float imaginary = quadrant & 1 ? c : s;
  cosine = (quadrant + 1) & 2 ? -real : real;
  sine = quadrant & 2 ? -imaginary : imaginary;
}

// Two normals from two words.
DRF_HD DRF_INLINE void normal_pair(uint32_t radius_word, uint32_t angle_word, float& z0,
                                   float& z1) {
  float cosine, sine;
  const float radius = normal_radius(radius_word);
  cos_sin_turns(angle_word, cosine, sine);
  z0 = radius * cosine;
  z1 = radius * sine;
}

}  // namespace drf_fast
