// The rows of a tile, an image's samples one after the other, and the softmax statistics of each.
//
// Each step runs over all rows before the next one starts: a vector load right after narrower
// stores to the same row would stall, as the store buffer cannot forward them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/losses.h"

namespace drf_fast::cpu {

// Statistics of each row.
template <typename A>
struct RowNumbers {
  A* peaks;
  A* label_exp;    // exp(logit of the label - peak)
  A* log_p;        // log of the label's probability
  A* log_totals;   // log of totals
  double* rests;   // sum of exp(logit - peak) over all classes but the label
  double* totals;  // over all classes

  static std::size_t bytes(std::int64_t count) {
    return 4 * Scratch::bytes(count, sizeof(A)) + 2 * Scratch::bytes(count, sizeof(double));
  }
  RowNumbers(std::int64_t count, Scratch& scratch)
      : peaks(scratch.take<A>(count)),
        label_exp(scratch.take<A>(count)),
        log_p(scratch.take<A>(count)),
        log_totals(scratch.take<A>(count)),
        rests(scratch.take<double>(count)),
        totals(scratch.take<double>(count)) {}
};

// The rows in row-major order, each padded to whole vectors.
template <typename A>
struct Rows : RowNumbers<A> {
  std::int64_t width;
  A* first;  // (count, width)

  static std::size_t bytes(const LossCall& call, std::int64_t count) {
    return RowNumbers<A>::bytes(count) + Scratch::bytes(count * padded(call.classes), sizeof(A));
  }
  Rows(const LossCall& call, std::int64_t count, Scratch& scratch)
      : RowNumbers<A>(count, scratch),
        width(padded(call.classes)),
        first(scratch.take<A>(count * width)) {}

  DRF_INLINE A* values(std::int64_t row) const { return first + row * width; }
  DRF_INLINE A& at(std::int64_t row, std::int64_t k) const { return values(row)[k]; }

  template <typename T>
  DRF_INLINE void load(std::int64_t row, const T* from, const LossCall& call) const {
    load_row(from, values(row), call.classes);
  }
  template <typename T>
  DRF_INLINE void store(std::int64_t row, A factor, T* to, const LossCall& call) const {
    store_row(values(row), factor, to, call.classes);
  }
  DRF_INLINE void find_peaks(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t row = begin; row < end; ++row) {
      this->peaks[row] = row_peak(values(row), width);
    }
  }
  DRF_INLINE void exp_and_sum(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t row = begin; row < end; ++row) {
      this->rests[row] = exp_row(values(row), width, this->peaks[row]);
    }
  }
};

// Reads the samples [begin, end) of each image, and finds the peaks of their rows.
template <typename T, typename Layout>
DRF_INLINE void load_rows(const LossCall& call, const Tile& tile, const Layout& rows,
                          std::int64_t begin, std::int64_t end) {
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const T* from = static_cast<const T*>(call.logits) +
                    (tile.first + image) * call.logits_image_stride +
                    begin * call.logits_sample_stride;
    for (std::int64_t sample = begin; sample < end; ++sample) {
      rows.load(image * call.samples + sample, from, call);
      from += call.logits_sample_stride;
    }
  }
  // With several images a step covers all their samples, so its rows are contiguous.
  rows.find_peaks(begin, (tile.images - 1) * call.samples + end);
}

// Keeps the label separate, so that 1 - F^y, the sum of the others, keeps its digits where F^y is
// nearly 1: log_p becomes logit - peak until exp_rows, and the row -inf there. For the rows
// [begin, end) of an image.
template <typename Layout>
DRF_INLINE void take_label_out(const Layout& rows, std::int64_t begin, std::int64_t end,
                               std::int64_t label) {
  for (std::int64_t row = begin; row < end; ++row) {
    auto& value = rows.at(row, label);
    rows.log_p[row] = value - rows.peaks[row];
    value = -static_cast<std::remove_reference_t<decltype(value)>>(INFINITY);
  }
}

// The rows become exp(logit - peak), 0 at the label, and their statistics are completed.
template <typename Layout>
DRF_INLINE void exp_rows(const Layout& rows, std::int64_t begin, std::int64_t end) {
  auto* __restrict label_exp = rows.label_exp;
  auto* __restrict log_totals = rows.log_totals;
  auto* __restrict log_p = rows.log_p;
  for (std::int64_t row = begin; row < end; ++row) label_exp[row] = exp_(log_p[row]);
  rows.exp_and_sum(begin, end);
  for (std::int64_t row = begin; row < end; ++row) {
    rows.totals[row] = rows.rests[row] + static_cast<double>(label_exp[row]);
    log_totals[row] = static_cast<std::remove_reference_t<decltype(*log_totals)>>(rows.totals[row]);
  }
  for (std::int64_t row = begin; row < end; ++row) {
    log_totals[row] = log_(log_totals[row]);
    log_p[row] -= log_totals[row];
  }
}

// Whether the rows of an image are distributions: a NaN, +inf or nothing but -inf make a NaN total.
template <typename A>
DRF_INLINE bool all_valid(const RowNumbers<A>& rows, std::int64_t first, std::int64_t samples) {
  double sum = 0.0;
  for (std::int64_t row = first; row < first + samples; ++row) sum += rows.totals[row];
  return sum == sum;
}

// The gradient: each row times its factor.
template <typename T, typename Layout, typename A>
DRF_INLINE void store_rows(const LossCall& call, const Tile& tile, const Layout& rows,
                           const A* factors) {
  std::int64_t row = 0;
  for (std::int64_t image = tile.first; image < tile.first + tile.images; ++image) {
    T* to = static_cast<T*>(call.grad) + image * call.grad_image_stride;
    for (std::int64_t sample = 0; sample < call.samples; ++sample, ++row) {
      rows.store(row, factors[row], to, call);
      to += call.grad_sample_stride;
    }
  }
}

}  // namespace drf_fast::cpu
