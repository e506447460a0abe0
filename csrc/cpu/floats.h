// The four floating types of tensors: how they widen to the type of the arithmetic and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/portable.h"

namespace drf_fast::cpu {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

DRF_INLINE float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DRF_INLINE std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// float32 holds both halves exactly; float64 stays as it is.
DRF_INLINE float widen(float value) { return value; }
DRF_INLINE double widen(double value) { return value; }
DRF_INLINE float widen(BFloat16 value) {
  return float_of_bits(static_cast<std::uint32_t>(value.bits) << 16);
}
DRF_INLINE float widen(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fff;
  const std::uint32_t rebias = magnitude < 0x7c00 ? 112u << 23 : 224u << 23;  // infinity and NaN
  const std::uint32_t normal = (magnitude << 13) + rebias;
  // Converted from an integer, so that no subnormal float occurs, which flush-to-zero would change.
  const float tiny = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  return float_of_bits(sign | (magnitude < 0x0400 ? bits_of_float(tiny) : normal));
}

// Round to nearest, ties to even; a NaN stays a NaN.
template <typename T>
T narrow(decltype(widen(T{})) value);
template <>
DRF_INLINE float narrow<float>(float value) {
  return value;
}
template <>
DRF_INLINE double narrow<double>(double value) {
  return value;
}
template <>
DRF_INLINE BFloat16 narrow<BFloat16>(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {static_cast<std::uint16_t>(value != value ? 0x7fc0 : rounded)};
}
template <>
DRF_INLINE Float16 narrow<Float16>(float value) {
  const std::uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
  // Below 2^-14 the unit of a half is 2^-24, which is that of a float at 1/2: adding 1/2 rounds.
  const std::uint32_t tiny = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  std::uint32_t half = magnitude < 0x38800000 ? tiny : normal;
  half = magnitude >= 0x47800000 ? 0x7c00 : half;
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  return {static_cast<std::uint16_t>((bits >> 16 & 0x8000) | half)};
}

// Calls function(T{}) with the C++ type T of dtype.
template <typename Function>
void with_dtype(Dtype dtype, Function function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kFloat64:
      return function(double{});
    case Dtype::kBFloat16:
      return function(BFloat16{});
    case Dtype::kFloat16:
      return function(Float16{});
  }
}

}  // namespace drf_fast::cpu
