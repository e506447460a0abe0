// The sum over the copies of an image, in one order for all its callers.
#pragma once

#include <cstdint>

#include "cpu/floats.h"

namespace drf_fast::cpu {

// total[i] = rows[i] + rows[stride + i] + ..., added row after row in the type of total.
template <typename T, typename Wide>
DRF_INLINE void sum_rows(const T* __restrict rows, std::int64_t stride, std::int64_t count,
                         Wide* __restrict total, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) total[i] = widen(rows[i]);
  for (std::int64_t row = 1; row < count; ++row) {
    rows += stride;
    for (std::int64_t i = 0; i < size; ++i) total[i] += widen(rows[i]);
  }
}

}  // namespace drf_fast::cpu
