// smooth_ce on the CPU: log m - logsumexp_i log F_i^y and its gradient, from one read of the
// logits.
//
// With e_i = exp(z_i - peak_i), s_i its sum and w = softmax_i(log F_i^y), the gradient of row i is
// w_i / s_i times e_i, and at the label minus the sum of the other e_i: one factor for each row.
#include "cpu/losses.h"

namespace drf_fast::cpu {
namespace {

struct NoWeights {};

// The bytes of the arrays that smooth_ce_tile takes.
template <typename A>
std::size_t smooth_ce_scratch(const LossCall& call) {
  const std::int64_t rows = images_per_tile(call) * call.samples;
  return Rows<A>::bytes(call, rows) + Scratch::bytes(rows, sizeof(A));
}

template <typename T>
DRF_INLINE void smooth_ce_tile(const LossCall& call, const NoWeights&, const Tile& tile) {
  using A = decltype(widen(T{}));
  constexpr A kInfinity = static_cast<A>(INFINITY);
  const std::int64_t samples = call.samples, count = tile.images * samples;
  Scratch scratch(tile.scratch);
  Rows<A> rows(call, count, scratch);
  A* weight = scratch.take<A>(count);  // exp(log F_i^y - the largest of the image)

  const std::int64_t step = samples_per_step(call);
  for (std::int64_t begin = 0; begin < samples; begin += step) {
    const std::int64_t end = std::min(begin + step, samples);
    load_rows<T>(call, tile, rows, begin, end);
    for (std::int64_t image = 0; image < tile.images; ++image) {
      const std::int64_t first = image * samples, label = call.target[tile.first + image];
      take_label_out(rows, first + begin, first + end, label);
    }
    exp_rows(rows, begin, (tile.images - 1) * samples + end);
  }
  for (std::int64_t row = 0; row < count; row += samples) {
    A top = -kInfinity;
    for (std::int64_t i = row; i < row + samples; ++i) top = larger(rows.log_p[i], top);
    // Where every F_i^y is exactly 0 their softmax is 0 / 0: all samples weigh the same.
    for (std::int64_t i = row; i < row + samples; ++i) {
      weight[i] = top == -kInfinity ? A{0} : rows.log_p[i] - top;
    }
  }
  for (std::int64_t row = 0; row < count; ++row) weight[row] = exp_(weight[row]);

  const double log_samples = log_(static_cast<double>(samples));
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * samples;
    double sum = 0.0;
    A top = -kInfinity;
    for (std::int64_t row = first; row < first + samples; ++row) {
      sum += static_cast<double>(weight[row]);
      top = larger(rows.log_p[row], top);
    }
    const double log_mean = static_cast<double>(log_(static_cast<A>(sum))) - log_samples;
    tile.losses[tile.first + image] = {-(static_cast<double>(top) + log_mean),
                                       all_valid(rows, first, samples)};
    for (std::int64_t row = first; row < first + samples; ++row) {
      const double share = static_cast<double>(weight[row]) * (tile.scale / sum);
      weight[row] = static_cast<A>(share / rows.totals[row]);
    }
  }
  if (call.grad == nullptr) return;
  for (std::int64_t image = 0, row = 0; image < tile.images; ++image) {
    const std::int64_t label = call.target[tile.first + image];
    for (std::int64_t sample = 0; sample < samples; ++sample, ++row) {
      rows.values(row)[label] = -static_cast<A>(rows.rests[row]);
    }
  }
  store_rows<T>(call, tile, rows, weight);
}

DRF_LOSS_CLONES(smooth_ce_tile, NoWeights)

}  // namespace

void smooth_ce(const LossCall& call) {
  const auto tile_function = smooth_ce_tile_for(call.dtype, active_isa());
  const std::size_t bytes = call.dtype == Dtype::kFloat64 ? smooth_ce_scratch<double>(call)
                                                          : smooth_ce_scratch<float>(call);
  run_tiles(call, bytes, [&](const Tile& tile) { tile_function(call, NoWeights{}, tile); });
}

}  // namespace drf_fast::cpu
