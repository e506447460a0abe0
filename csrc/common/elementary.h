// exp, log and their small-argument companions in double precision, from +, -, *, / only.
//
// Why not libm: the same source must give the same bits on every host and device. Hence no FMA
// contraction either (-ffp-contract=off, --fmad=false).
//
// Error bounds, with u = 2^-53 and assuming round to nearest:
//   exp_(x)           relative error <= 3u on [-708, 709]
//   log_(x)           absolute error <= 2u + u |log x|, relative error <= 4u for x in [0.7, 1.4]
//   expm1_(x)         relative error <= 5u for |x| <= 0.34, absolute error <= 4u e^x elsewhere
//   x_minus_log1p(x)  relative error <= 6u on [-1/2, 1], <= 9u elsewhere in (-1, 1e300)
// Each is the sum of the roundings of the last few operations (the small terms of a polynomial
// add next to nothing) and of the truncation named beside the code, which stays below u / 4.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace drf_fast {

constexpr double kUnit = 1.1102230246251565e-16;  // u, half the spacing of doubles at 1
constexpr double kSqrt2Pi = 2.5066282746310005;

DRF_HD inline std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

DRF_HD inline double from_bits(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest double below x, for x > 0 (0 stays 0: every result that is rounded here is >= 0).
DRF_HD inline double next_below(double x) { return x > 0.0 ? from_bits(bits_of(x) - 1) : 0.0; }

// log 2 in two parts; the first has 33 significant bits, so its product with an exponent is exact.
constexpr double kLn2High = 0x1.62e42fee00000p-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

// (e^r - 1 - r) / r^2 for |r| <= 0.3466; the first term left out is below 2^-57 of e^r.
DRF_HD inline double exp_remainder(double r) {
  double sum = 1.0 / 6227020800.0;
  sum = sum * r + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  return sum * r + 0.5;
}

// 0 below -708 (no caller needs the rest of the range), the value at 709 above 709.
DRF_HD inline double exp_(double x) {
  const double clamped = x < -708.0 ? -708.0 : (x > 709.0 ? 709.0 : x);
  // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits: no conversion needed,
  // which is what lets compilers vectorise a loop over this function.
  const double shifted = clamped * 1.4426950408889634 + 6755399441055744.0;
  const double exponent = shifted - 6755399441055744.0;
  const double r = (clamped - exponent * kLn2High) - exponent * kLn2Low;
  const double scale = from_bits((bits_of(shifted) + 1023) << 52);
  const double value = (1.0 + (r + r * r * exp_remainder(r))) * scale;
  return x < -708.0 ? 0.0 : value;
}

DRF_HD inline double expm1_(double x) {
  return x > -0.34 && x < 0.34 ? x + x * x * exp_remainder(x) : exp_(x) - 1.0;
}

// x - log(1 + x) on [-1/2, 1]. With r = x / (2 + x), log(1 + x) = 2 atanh r and x - 2r = r x, so
// the value is r (x - 2 r^2 (1/3 + r^2/5 + r^4/7 + ...)): no cancellation, whatever the sign.
// r^2 <= 1/9, and the first term left out is below 2^-54 of the value.
DRF_HD inline double x_minus_log1p_near_0(double x) {
  const double r = x / (2.0 + x);
  const double z = r * r;
  double sum = 1.0 / 33.0;
  sum = sum * z + 1.0 / 31.0;
  sum = sum * z + 1.0 / 29.0;
  sum = sum * z + 1.0 / 27.0;
  sum = sum * z + 1.0 / 25.0;
  sum = sum * z + 1.0 / 23.0;
  sum = sum * z + 1.0 / 21.0;
  sum = sum * z + 1.0 / 19.0;
  sum = sum * z + 1.0 / 17.0;
  sum = sum * z + 1.0 / 15.0;
  sum = sum * z + 1.0 / 13.0;
  sum = sum * z + 1.0 / 11.0;
  sum = sum * z + 1.0 / 9.0;
  sum = sum * z + 1.0 / 7.0;
  sum = sum * z + 1.0 / 5.0;
  sum = sum * z + 1.0 / 3.0;
  return r * (x - 2.0 * z * sum);
}

// Natural logarithm of a positive, finite number, subnormal ones included.
DRF_HD inline double log_(double x) {
  const bool subnormal = x < 0x1p-1022;
  const std::uint64_t bits = bits_of(subnormal ? x * 0x1p54 : x);
  // The offset moves the border between two exponents to a mantissa of about sqrt(1/2).
  const std::uint64_t offset = bits - 0x3fe6a09e00000000u;
  const std::int64_t exponent = static_cast<std::int64_t>(offset) >> 52;
  const double fraction = from_bits(bits - (static_cast<std::uint64_t>(exponent) << 52)) - 1.0;
  const double e = static_cast<double>(subnormal ? exponent - 54 : exponent);
  return e * kLn2High + ((fraction - x_minus_log1p_near_0(fraction)) + e * kLn2Low);
}

// x - log(1 + x) for x > -1: the exponent of a deviance, >= 0.
DRF_HD inline double x_minus_log1p(double x) {
  return x >= -0.5 && x <= 1.0 ? x_minus_log1p_near_0(x) : x - log_(1.0 + x);
}

}  // namespace drf_fast
