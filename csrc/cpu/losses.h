// Tiles of images, scratch memory, checks and reduction, shared by the three losses.
//
// A loss is a function of one tile (some consecutive images), compiled for every dtype and
// instruction set. Images do not depend on each other and their losses are summed in one fixed
// order, so the result does not depend on tiles or threads.
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
  bool valid;  // false where a row of logits is not a valid distribution
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

// Images of a tile: as many as fit the L1 cache with their rows, so that work per row (log, exp of
// the weights) is vectorised over many rows.
inline std::int64_t images_per_tile(const LossCall& call) {
  return std::max<std::int64_t>(1, kTileValues / (call.samples * padded(call.classes)));
}

// Samples of an image that are processed at a time, to stay in the L1 cache as well: all of them
// where a tile has several images.
DRF_INLINE std::int64_t samples_per_step(const LossCall& call) {
  const std::int64_t fitting = kTileValues / padded(call.classes);
  return fitting < 1 ? 1 : fitting < call.samples ? fitting : call.samples;
}

// Throws std::invalid_argument where a label is out of range.
void check_labels(const LossCall& call);

// Asks the system for huge pages for the gradient.
void expect_gradient(const LossCall& call);

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
  expect_gradient(call);
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
