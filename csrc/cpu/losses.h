// What the three losses share: tiles of images, scratch memory, checks, reduction.
//
// A loss is a function of one tile (some consecutive images), compiled for every dtype and
// instruction set. Images do not depend on each other and their losses are summed in one fixed
// order, so neither the tiles nor the threads show in the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/softmax.h"

namespace drf_fast::cpu {

struct ImageLoss {
  double value;
  bool valid;  // false where a row of logits is no distribution
};

struct Tile {
  std::int64_t first, images;
  void* scratch;
  ImageLoss* losses;  // of the whole batch
  double scale;       // of the gradient: 1/B where the loss is a mean
};

// Hands out parts of a tile's scratch memory, each on a cache line of its own.
class Scratch {
 public:
  static constexpr std::size_t kLine = 64;
  static std::size_t bytes(std::int64_t values, std::size_t size) {
    return (static_cast<std::size_t>(values) * size + kLine - 1) / kLine * kLine;
  }

  explicit Scratch(void* memory) : next_(static_cast<char*>(memory)) {}
  template <typename A>
  A* take(std::int64_t values) {
    A* part = reinterpret_cast<A*>(next_);
    next_ += bytes(values, sizeof(A));
    return part;
  }

 private:
  char* next_;
};

constexpr std::int64_t kTileValues = 4096;

// How many images make a tile: as many as keep its rows in the first cache, so that what is done
// once a row (log, exp of the weights) runs over many rows.
inline std::int64_t images_per_tile(const LossCall& call) {
  return std::max<std::int64_t>(1, kTileValues / (call.samples * padded(call.classes)));
}

// How many samples of an image are worked on at a time, with the same aim: all of them where a tile
// has several images.
DRF_INLINE std::int64_t samples_per_step(const LossCall& call) {
  const std::int64_t fitting = kTileValues / padded(call.classes);
  return fitting < 1 ? 1 : fitting < call.samples ? fitting : call.samples;
}

// Throws std::invalid_argument where a label is out of range.
void check_labels(const LossCall& call);

// Throws std::invalid_argument where an image is not valid, else writes call.loss.
void write_loss(const LossCall& call, const std::vector<ImageLoss>& losses);

// One block of aligned memory for each thread.
class ScratchMemory {
 public:
  ScratchMemory(std::size_t bytes, int parts)
      : bytes_((bytes + 4095) / 4096 * 4096),
        memory_(static_cast<char*>(::operator new(bytes_* static_cast<std::size_t>(parts),
                                                  std::align_val_t{Scratch::kLine}))) {}
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;
  ~ScratchMemory() { ::operator delete(memory_, std::align_val_t{Scratch::kLine}); }
  void* part(std::int64_t index) { return memory_ + bytes_ * static_cast<std::size_t>(index); }

 private:
  std::size_t bytes_;
  char* memory_;
};

// Runs run_tile(tile) on all images; each thread has a block of scratch_bytes.
template <typename RunTile>
void run_tiles(const LossCall& call, std::size_t scratch_bytes, RunTile run_tile) {
  check_labels(call);
  const std::int64_t size = images_per_tile(call);
  const std::int64_t tiles = (call.batch + size - 1) / size;
  const std::int64_t parts = std::max<std::int64_t>(1, std::min<std::int64_t>(call.threads, tiles));
  std::vector<ImageLoss> losses(static_cast<std::size_t>(call.batch));
  ScratchMemory memory(scratch_bytes, static_cast<int>(parts));
  const double scale =
      call.reduction == Reduction::kMean ? 1.0 / static_cast<double>(call.batch) : 1.0;
#pragma omp parallel for num_threads(call.threads) schedule(static, 1) if (parts > 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t i = tiles * part / parts; i < tiles * (part + 1) / parts; ++i) {
      const std::int64_t first = i * size;
      run_tile(
          Tile{first, std::min(size, call.batch - first), memory.part(part), losses.data(), scale});
    }
  }
  write_loss(call, losses);
}

// The rows of a tile, an image's samples one after the other, and what a softmax knows of each.
// Steps run over all rows before the next step starts: a row read back right after parts of it were
// written would wait for them to reach the cache.
template <typename A>
struct Rows {
  std::int64_t width, count;
  A* first;  // (count, width)
  A* peaks;
  A* label_exp;    // exp(logit of the label - peak)
  A* log_p;        // log of the label's probability
  A* log_totals;   // log of totals
  double* rests;   // sum of exp(logit - peak) over all classes but the label
  double* totals;  // over all classes

  static std::size_t bytes(const LossCall& call, std::int64_t count) {
    return Scratch::bytes(count * padded(call.classes), sizeof(A)) +
           4 * Scratch::bytes(count, sizeof(A)) + 2 * Scratch::bytes(count, sizeof(double));
  }
  Rows(const LossCall& call, std::int64_t count, Scratch& scratch)
      : width(padded(call.classes)),
        count(count),
        first(scratch.take<A>(count * width)),
        peaks(scratch.take<A>(count)),
        label_exp(scratch.take<A>(count)),
        log_p(scratch.take<A>(count)),
        log_totals(scratch.take<A>(count)),
        rests(scratch.take<double>(count)),
        totals(scratch.take<double>(count)) {}
  A* values(std::int64_t row) const { return first + row * width; }
};

// Reads the samples [begin, end) of each image, and finds the peaks of their rows.
template <typename T, typename A>
DRF_INLINE void load_rows(const LossCall& call, const Tile& tile, const Rows<A>& rows,
                          std::int64_t begin, std::int64_t end) {
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const T* from = static_cast<const T*>(call.logits) +
                    (tile.first + image) * call.logits_image_stride +
                    begin * call.logits_sample_stride;
    A* to = rows.values(image * call.samples + begin);
    for (std::int64_t sample = begin; sample < end; ++sample) {
      load_row(from, to, call.classes);
      from += call.logits_sample_stride;
      to += rows.width;
    }
  }
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * call.samples;
    for (std::int64_t row = first + begin; row < first + end; ++row) {
      rows.peaks[row] = row_peak(rows.values(row), rows.width);
    }
  }
}

// The label goes its own way, so that 1 - F^y, the sum of the others, keeps its digits where F^y is
// nearly 1: log_p = logit - peak for now, and -inf in the row. For the rows [begin, end) of an
// image.
template <typename A>
DRF_INLINE void take_label_out(const Rows<A>& rows, std::int64_t begin, std::int64_t end,
                               std::int64_t label) {
  for (std::int64_t row = begin; row < end; ++row) {
    A& value = rows.values(row)[label];
    rows.log_p[row] = value - rows.peaks[row];
    value = -static_cast<A>(INFINITY);
  }
}

// The rows become exp(logit - peak), 0 at the label, and all about them is known.
template <typename A>
DRF_INLINE void exp_rows(const Rows<A>& rows, std::int64_t begin, std::int64_t end) {
  A* __restrict label_exp = rows.label_exp;
  A* __restrict log_totals = rows.log_totals;
  A* __restrict log_p = rows.log_p;
  for (std::int64_t row = begin; row < end; ++row) label_exp[row] = exp_(log_p[row]);
  for (std::int64_t row = begin; row < end; ++row) {
    rows.rests[row] = exp_row(rows.values(row), rows.width, rows.peaks[row]);
  }
  for (std::int64_t row = begin; row < end; ++row) {
    rows.totals[row] = rows.rests[row] + static_cast<double>(rows.label_exp[row]);
    log_totals[row] = static_cast<A>(rows.totals[row]);
  }
  for (std::int64_t row = begin; row < end; ++row) {
    log_totals[row] = log_(log_totals[row]);
    log_p[row] -= log_totals[row];
  }
}

// Whether the rows of an image are distributions: a NaN, +inf or nothing but -inf make a NaN total.
template <typename A>
DRF_INLINE bool all_valid(const Rows<A>& rows, std::int64_t first, std::int64_t samples) {
  bool valid = true;
  for (std::int64_t row = first; row < first + samples; ++row) {
    valid = valid && rows.totals[row] == rows.totals[row];
  }
  return valid;
}

// The gradient: each row times its factor.
template <typename T, typename A>
DRF_INLINE void store_rows(const LossCall& call, const Tile& tile, const Rows<A>& rows,
                           const A* factors) {
  std::int64_t row = 0;
  for (std::int64_t image = tile.first; image < tile.first + tile.images; ++image) {
    T* to = static_cast<T*>(call.grad) + image * call.grad_image_stride;
    for (std::int64_t sample = 0; sample < call.samples; ++sample, ++row) {
      store_row(rows.values(row), factors[row], to, call.classes);
      to += call.grad_sample_stride;
    }
  }
}

}  // namespace drf_fast::cpu

// NAME(call, weights, tile) for each dtype and instruction set; NAME_for(dtype, isa) picks one.
#define DRF_LOSS_CLONES(NAME, WEIGHTS)                                             \
  DRF_ISA_CLONES(NAME##_float32, NAME<float>,                                      \
                 (const LossCall& call, const WEIGHTS& weights, const Tile& tile), \
                 (call, weights, tile))                                            \
  DRF_ISA_CLONES(NAME##_float64, NAME<double>,                                     \
                 (const LossCall& call, const WEIGHTS& weights, const Tile& tile), \
                 (call, weights, tile))                                            \
  DRF_ISA_CLONES(NAME##_bfloat16, NAME<BFloat16>,                                  \
                 (const LossCall& call, const WEIGHTS& weights, const Tile& tile), \
                 (call, weights, tile))                                            \
  DRF_ISA_CLONES(NAME##_float16, NAME<Float16>,                                    \
                 (const LossCall& call, const WEIGHTS& weights, const Tile& tile), \
                 (call, weights, tile))                                            \
  inline auto NAME##_for(Dtype dtype, Isa isa) {                                   \
    return dtype == Dtype::kFloat32    ? NAME##_float32_for(isa)                   \
           : dtype == Dtype::kFloat64  ? NAME##_float64_for(isa)                   \
           : dtype == Dtype::kBFloat16 ? NAME##_bfloat16_for(isa)                  \
                                       : NAME##_float16_for(isa);                  \
  }
