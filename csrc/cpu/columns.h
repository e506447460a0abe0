// The rows of a tile for few classes, transposed in blocks of kLanes rows.
//
// A maximum or a sum over 10 classes within one vector is a cascade of shuffles, and costs more
// than the exponentials. Here the classes of a row lie kLanes values apart, so both run over whole
// vectors, one row in each lane; the transposition costs a load and a store a value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

namespace drf_fast::cpu {

constexpr std::int64_t kFewClasses = 16;

// The same interface as Rows, so that the functions of rows.h take either.
template <typename A>
struct Columns : RowNumbers<A> {
  std::int64_t count, classes;
  A* first;  // (count / kLanes, classes, kLanes)

  static std::int64_t whole(std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
  static std::size_t bytes(const LossCall& call, std::int64_t count) {
    return RowNumbers<A>::bytes(whole(count)) +
           Scratch::bytes(whole(count) * call.classes, sizeof(A));
  }
  Columns(const LossCall& call, std::int64_t count, Scratch& scratch)
      : RowNumbers<A>(whole(count), scratch),
        count(count),
        classes(call.classes),
        first(scratch.take<A>(whole(count) * classes)) {
    // Padding of the last block: any number that is initialised will do.
    for (std::int64_t row = count; row < whole(count); ++row) {
      for (std::int64_t k = 0; k < classes; ++k) at(row, k) = A{0};
    }
  }

  DRF_INLINE A* block(std::int64_t row) const { return first + row / kLanes * classes * kLanes; }
  DRF_INLINE A& at(std::int64_t row, std::int64_t k) const {
    return block(row)[k * kLanes + row % kLanes];
  }

  template <typename T>
  DRF_INLINE void load(std::int64_t row, const T* from, const LossCall&) const {
    A* to = &at(row, 0);
    for (std::int64_t k = 0; k < classes; ++k) to[k * kLanes] = widen(from[k]);
  }
  template <typename T>
  DRF_INLINE void store(std::int64_t row, A factor, T* to, const LossCall&) const {
    const A* from = &at(row, 0);
    for (std::int64_t k = 0; k < classes; ++k) to[k] = narrow<T>(from[k * kLanes] * factor);
  }

  // `begin` is a multiple of kLanes; rows beyond `end` in the last block are recomputed by the next
  // call.
  DRF_INLINE void find_peaks(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t row = begin; row < end; row += kLanes) {
      const A* values = block(row);
      A lane[kLanes];
      for (int j = 0; j < kLanes; ++j) lane[j] = values[j];
      for (std::int64_t k = 1; k < classes; ++k) {
        DRF_SIMD
        for (int j = 0; j < kLanes; ++j) lane[j] = larger(values[k * kLanes + j], lane[j]);
      }
      for (int j = 0; j < kLanes; ++j) this->peaks[row + j] = lane[j];
    }
  }
  DRF_INLINE void exp_and_sum(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t row = begin; row < end; row += kLanes) {
      A* values = block(row);
      A peak[kLanes], lane[kLanes] = {};
      for (int j = 0; j < kLanes; ++j) peak[j] = this->peaks[row + j];
      for (std::int64_t k = 0; k < classes; ++k) {
        DRF_SIMD
        for (int j = 0; j < kLanes; ++j) {
          const A value = exp_(values[k * kLanes + j] - peak[j]);
          values[k * kLanes + j] = value;
          lane[j] += value;
        }
      }
      for (int j = 0; j < kLanes; ++j) this->rests[row + j] = static_cast<double>(lane[j]);
    }
  }
};

}  // namespace drf_fast::cpu
