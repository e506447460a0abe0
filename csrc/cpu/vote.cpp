// vote on the CPU: the argmax of each row, counted into the histogram of the row's image.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kRowsAtOnce = 4 * kLanes;
constexpr std::int64_t kFewClasses = 48;
constexpr std::int32_t kNoClass = -1;

// Few classes: one row in each of kLanes lanes, whose comparisons are independent. Several blocks
// of rows are transposed before the first is read: a vector load right after the narrower stores
// of its parts would stall, as the store buffer cannot forward them.
template <typename T>
DRF_INLINE void elect_rows_body(const T* rows, std::int64_t classes,
                                std::int32_t* __restrict winners) {
  using Wide = decltype(widen(*rows));
  Wide columns[kFewClasses * kRowsAtOnce];
  for (int row = 0; row < kRowsAtOnce; ++row) {
    for (std::int64_t k = 0; k < classes; ++k) {
      columns[k * kRowsAtOnce + row] = widen(rows[row * classes + k]);
    }
  }
  for (int begin = 0; begin < kRowsAtOnce; begin += kLanes) {
    const Wide* values = columns + begin;
    Wide best[kLanes];
    std::int32_t winner[kLanes] = {};
    std::int32_t has_nan[kLanes];
    for (int j = 0; j < kLanes; ++j) best[j] = values[j];
    for (int j = 0; j < kLanes; ++j) has_nan[j] = best[j] != best[j];
    for (std::int32_t k = 1; k < static_cast<std::int32_t>(classes); ++k) {
      DRF_SIMD
      for (int j = 0; j < kLanes; ++j) {
        const Wide value = values[k * kRowsAtOnce + j];
        winner[j] = value > best[j] ? k : winner[j];
        best[j] = value > best[j] ? value : best[j];
        has_nan[j] |= value != value;
      }
    }
    for (int j = 0; j < kLanes; ++j) {
      winners[begin + j] = has_nan[j] ? kNoClass : winner[j];
    }
  }
}

DRF_ISA_TEMPLATE_CLONES(elect_rows, elect_rows_body,
                        (const T* rows, std::int64_t classes, std::int32_t* winners),
                        (rows, classes, winners))

// Many classes: one row, its maximum over kLanes lanes, then the first class that attains it.
// Without the pragma the loop over lanes is unrolled into scalar code before it can be vectorised.
template <typename T>
std::int32_t elect_row(const T* row, std::int64_t classes) {
  using Wide = decltype(widen(*row));
  Wide best[kLanes];
  Wide poison[kLanes] = {};  // NaN once the lane has seen one
  std::fill(best, best + kLanes, -static_cast<Wide>(INFINITY));
  std::int64_t k = 0;
  for (; k + kLanes <= classes; k += kLanes) {
    DRF_SIMD
    for (int j = 0; j < kLanes; ++j) {
      const Wide value = widen(row[k + j]);
      best[j] = value > best[j] ? value : best[j];
      poison[j] = value != value ? value : poison[j];
    }
  }
  for (; k < classes; ++k) {
    const Wide value = widen(row[k]);
    best[0] = value > best[0] ? value : best[0];
    poison[0] = value != value ? value : poison[0];
  }
  if (std::any_of(poison, poison + kLanes, [](Wide value) { return value != value; })) {
    return kNoClass;
  }
  const Wide top = *std::max_element(best, best + kLanes);
  for (k = 0; widen(row[k]) != top;) ++k;
  return static_cast<std::int32_t>(k);
}

// Adds the votes of rows [begin, end) to the histograms (images, classes).
template <typename T>
void count_rows(const T* logits, std::int64_t begin, std::int64_t end, std::int64_t classes,
                std::int64_t rows_per_image, std::int64_t* histograms, Isa isa) {
  const auto elect = elect_rows_for<T>(isa);
  std::int32_t winners[kRowsAtOnce];
  std::int64_t* histogram = histograms + begin / rows_per_image * classes;
  std::int64_t left = rows_per_image - begin % rows_per_image;  // rows left in this image
  for (std::int64_t row = begin; row < end;) {
    const T* values = logits + row * classes;
    int elected = 1;
    if (classes <= kFewClasses && end - row >= kRowsAtOnce) {
      elect(values, classes, winners);
      elected = kRowsAtOnce;
    } else {
      winners[0] = elect_row(values, classes);
    }
    for (int j = 0; j < elected; ++j) {
      if (winners[j] != kNoClass) ++histogram[winners[j]];
      if (--left == 0) {
        histogram += classes;
        left = rows_per_image;
      }
    }
    row += elected;
  }
}

template <typename T>
void vote_as(const T* logits, std::int64_t rows, std::int64_t classes, std::int64_t* counts,
             std::int64_t images, int threads) {
  const std::int64_t rows_per_image = rows / images;
  const std::int64_t parts = std::max(threads, 1);
  // With enough images each thread takes whole ones, so that no two threads share a histogram; else
  // threads take rows, and count into histograms of their own, which are added at the end.
  const bool by_image = images >= parts;
  const std::int64_t size = images * classes;
  const Isa isa = active_isa();
  std::vector<std::int64_t> own(by_image ? 0 : static_cast<std::size_t>(parts * size), 0);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (parts > 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t units = by_image ? images : rows;
    const std::int64_t unit_rows = by_image ? rows_per_image : 1;
    // units * part / parts without overflow
    const auto cut = [&](std::int64_t p) {
      return (units / parts * p + units % parts * p / parts) * unit_rows;
    };
    count_rows(logits, cut(part), cut(part + 1), classes, rows_per_image,
               by_image ? counts : own.data() + part * size, isa);
  }
  for (std::size_t i = 0; i < own.size(); ++i) counts[i % static_cast<std::size_t>(size)] += own[i];
}

}  // namespace

void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, int threads) {
  if (rows == 0) return;
  with_dtype(dtype, [&](auto type) {
    vote_as(static_cast<const decltype(type)*>(logits), rows, classes, counts, images, threads);
  });
}

}  // namespace drf_fast::cpu
