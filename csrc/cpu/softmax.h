// The steps of a softmax over rows of logits, for every loss.
//
// A row of logits is widened into a buffer of padded(classes) values, a multiple of kLanes, padded
// with -inf, neutral in every maximum and, as e^-inf = 0, in every sum. So every loop below runs
// over whole vectors, for 10 classes as for 1000, and a sum always has kLanes partial sums, added
// in one fixed order: the same bits on every instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/portable.h"
#include "cpu/exp_log.h"
#include "cpu/floats.h"

namespace drf_fast::cpu {

constexpr int kLanes = 16;

DRF_INLINE std::int64_t padded(std::int64_t classes) {
  return (classes + kLanes - 1) / kLanes * kLanes;
}

// The sum and the largest of kLanes values, by a tree of halves.
template <typename A>
DRF_INLINE A sum_of_lanes(A* lane) {
  DRF_SIMD
  for (int j = 0; j < 8; ++j) lane[j] += lane[j + 8];
  DRF_SIMD
  for (int j = 0; j < 4; ++j) lane[j] += lane[j + 4];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}
template <typename A>
DRF_INLINE A larger(A a, A b) {
  return a > b ? a : b;
}
template <typename A>
DRF_INLINE A largest_of_lanes(A* lane) {
  for (int j = 0; j < 8; ++j) lane[j] = larger(lane[j], lane[j + 8]);
  for (int j = 0; j < 4; ++j) lane[j] = larger(lane[j], lane[j + 4]);
  return larger(larger(lane[0], lane[2]), larger(lane[1], lane[3]));
}

// Without the pragma a loop of known length is unrolled into scalar code before it is vectorised.
template <int kBlock, typename T, typename A>
DRF_INLINE void widen_block(const T* from, A* __restrict to) {
  DRF_SIMD
  for (int j = 0; j < kBlock; ++j) to[j] = widen(from[j]);
}

template <int kBlock, typename T, typename A>
DRF_INLINE void widen_blocks(const T* from, A* to, std::int64_t size) {
  for (std::int64_t k = 0; k + kBlock <= size; k += kBlock) widen_block<kBlock>(from + k, to + k);
  // The rest is one whole block that overlaps the one before, instead of a scalar loop.
  widen_block<kBlock>(from + size - kBlock, to + size - kBlock);
}

// One row into its padded buffer; size >= 2.
template <typename T, typename A>
DRF_INLINE void load_row(const T* from, A* __restrict to, std::int64_t size) {
  A* last = to + padded(size) - kLanes;
  for (int j = 0; j < kLanes; ++j) last[j] = -static_cast<A>(INFINITY);
  if (size >= 16) {
    widen_blocks<16>(from, to, size);
  } else if (size >= 8) {
    widen_blocks<8>(from, to, size);
  } else if (size >= 4) {
    widen_blocks<4>(from, to, size);
  } else {
    widen_blocks<2>(from, to, size);
  }
}

template <int kBlock, typename T, typename A>
DRF_INLINE void narrow_block(const A* __restrict from, A factor, T* __restrict to) {
  DRF_SIMD
  for (int j = 0; j < kBlock; ++j) to[j] = narrow<T>(from[j] * factor);
}

template <int kBlock, typename T, typename A>
DRF_INLINE void narrow_blocks(const A* from, A factor, T* to, std::int64_t size) {
  for (std::int64_t k = 0; k + kBlock <= size; k += kBlock) {
    narrow_block<kBlock>(from + k, factor, to + k);
  }
  narrow_block<kBlock>(from + size - kBlock, factor, to + size - kBlock);
}

// to = from * factor without the padding; nothing outside the row is written.
template <typename T, typename A>
DRF_INLINE void store_row(const A* __restrict from, A factor, T* to, std::int64_t size) {
  if (size >= 16) {
    narrow_blocks<16>(from, factor, to, size);
  } else if (size >= 8) {
    narrow_blocks<8>(from, factor, to, size);
  } else if (size >= 4) {
    narrow_blocks<4>(from, factor, to, size);
  } else {
    narrow_blocks<2>(from, factor, to, size);
  }
}

// The largest value of a padded row; a NaN is ignored here and found by exp_row.
template <typename A>
DRF_INLINE A row_peak(const A* row, std::int64_t width) {
  A lane[kLanes];
  for (int j = 0; j < kLanes; ++j) lane[j] = row[j];
  for (std::int64_t k = kLanes; k < width; k += kLanes) {
    DRF_SIMD
    for (int j = 0; j < kLanes; ++j) lane[j] = larger(row[k + j], lane[j]);
  }
  return largest_of_lanes(lane);
}

// Sums run in the arithmetic type over this many values, and in float64 from there on, so that
// 100,000 classes lose no more than 1,000 do.
constexpr std::int64_t kChunk = 64 * kLanes;

// row = exp(row - peak); the sum of the row, NaN where the row holds a NaN or its peak is infinite.
template <typename A>
DRF_INLINE double exp_row(A* row, std::int64_t width, A peak) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < width; begin += kChunk) {
    const std::int64_t end = begin + kChunk < width ? begin + kChunk : width;
    A lane[kLanes] = {};
    for (std::int64_t k = begin; k < end; k += kLanes) {
      DRF_SIMD
      for (int j = 0; j < kLanes; ++j) {
        const A value = exp_(row[k + j] - peak);
        row[k + j] = value;
        lane[j] += value;
      }
    }
    total += static_cast<double>(sum_of_lanes(lane));
  }
  return total;
}

}  // namespace drf_fast::cpu
