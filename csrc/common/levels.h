// Gaussian noise in whole levels: a 64-bit word to an integer R, through the guide that
// drf_fast/runtime/level_table.py makes and explains.
//
// V is the word, or its complement where its first bit is set, so 63 bits. Its bucket is the
// position of its leading bit and the `bits` bits after it; the bucket's row is a threshold and
// the numbers of thresholds beyond V on both of its sides.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace drf_fast {

struct GuideRow {
  int64_t threshold;
  int64_t counts;  // for V >= threshold, and 2^16 times that for V < threshold
};

struct Guide {
  const GuideRow* rows;  // 63 << bits of them
  int bits;
};

// The `bits` + 1 leading bits of V, truncated. The bit after them is cleared before the conversion
// to float32, so that no rounding can carry into them; the exponent and the first bits of the
// fraction are then the bucket.
DRF_HD DRF_INLINE int bucket_of(int64_t value, int bits) {
  const float cut = static_cast<float>(value & ~(value >> (bits + 1)));
  int32_t image;
  std::memcpy(&image, &cut, sizeof image);
  const int bucket = (image >> (23 - bits)) - (127 << bits);
  return bucket < 0 ? 0 : bucket;  // V = 0
}

DRF_HD DRF_INLINE int level_of_word(uint32_t high, uint32_t low, const Guide& guide) {
  const uint64_t word = static_cast<uint64_t>(high) << 32 | low;
  const bool upper = high >> 31 != 0;
  const int64_t value = static_cast<int64_t>(upper ? ~word : word);
  const GuideRow row = guide.rows[bucket_of(value, guide.bits)];
  const int beyond = static_cast<int>(
      value < row.threshold ? static_cast<uint64_t>(row.counts) >> 16 : row.counts & 0xffff);
  return upper ? beyond : -beyond;
}

}  // namespace drf_fast
