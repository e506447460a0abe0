// smooth_ce on the CPU: log m - logsumexp_i log F_i^y and its gradient, from one read of the
// logits.
//
// With e_i = exp(z_i - peak_i), s_i its sum and w = softmax_i(log F_i^y), the gradient of row i is
// w_i / s_i times e_i, and at the label minus the sum of the other e_i: one factor for each row.
#include "cpu/columns.h"

namespace drf_fast::cpu {
namespace {

struct NoWeights {};

// Bytes of the arrays that smooth_ce_tile takes from its scratch memory.
template <typename A, typename Layout>
std::size_t smooth_ce_scratch(const LossCall& call) {
  const std::int64_t images = images_per_tile(call), rows = images * call.samples;
  return Layout::bytes(call, rows) + Scratch::bytes(rows, sizeof(A)) +
         Scratch::bytes(rows, sizeof(double)) + 2 * Scratch::bytes(images, sizeof(A)) +
         Scratch::bytes(images, sizeof(double));
}

template <typename T, template <typename> typename Layout>
DRF_INLINE void smooth_ce_tile(const LossCall& call, const Tile& tile) {
  using A = decltype(widen(T{}));
  constexpr A kInfinity = static_cast<A>(INFINITY);
  const std::int64_t samples = call.samples, count = tile.images * samples;
  Scratch scratch(tile.scratch);
  const Layout<A> rows(call, count, scratch);
  A* __restrict weight = scratch.take<A>(count);  // exp(log F_i^y - the largest of the image)
  double* __restrict shares = scratch.take<double>(count);
  A* __restrict tops = scratch.take<A>(tile.images);
  A* __restrict log_sums = scratch.take<A>(tile.images);
  double* __restrict sums = scratch.take<double>(tile.images);

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
  // From here on there are a few numbers per row and per image. exp, log and divisions are in loops
  // over all rows, or all images, of the tile, which are vectorised; the other loops are cheap.
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * samples;
    A top = -kInfinity;
    for (std::int64_t row = first; row < first + samples; ++row) top = larger(rows.log_p[row], top);
    tops[image] = top;
    // Where every F_i^y is exactly 0 their softmax is 0 / 0: all samples weigh the same.
    for (std::int64_t row = first; row < first + samples; ++row) {
      weight[row] = top == -kInfinity ? A{0} : rows.log_p[row] - top;
    }
  }
  for (std::int64_t row = 0; row < count; ++row) weight[row] = exp_(weight[row]);
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * samples;
    double sum = 0.0;
    for (std::int64_t row = first; row < first + samples; ++row) {
      sum += static_cast<double>(weight[row]);
    }
    sums[image] = sum;
    log_sums[image] = static_cast<A>(sum);
  }
  for (std::int64_t image = 0; image < tile.images; ++image) {
    log_sums[image] = log_(log_sums[image]);
    sums[image] = tile.scale / sums[image];
  }
  const double log_samples = log_(static_cast<double>(samples));
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const double log_mean = static_cast<double>(log_sums[image]) - log_samples;
    tile.losses[tile.first + image] = {-(static_cast<double>(tops[image]) + log_mean),
                                       all_valid(rows, image * samples, samples)};
    for (std::int64_t row = image * samples; row < (image + 1) * samples; ++row) {
      shares[row] = static_cast<double>(weight[row]) * sums[image];
    }
  }
  if (call.grad == nullptr) return;
  for (std::int64_t row = 0; row < count; ++row) {
    weight[row] = static_cast<A>(shares[row] / rows.totals[row]);
  }
  for (std::int64_t image = 0, row = 0; image < tile.images; ++image) {
    const std::int64_t label = call.target[tile.first + image];
    for (std::int64_t sample = 0; sample < samples; ++sample, ++row) {
      rows.at(row, label) = -static_cast<A>(rows.rests[row]);
    }
  }
  store_rows<T>(call, tile, rows, weight);
}

template <typename T>
DRF_INLINE void smooth_ce_of_rows(const LossCall& call, const NoWeights&, const Tile& tile) {
  smooth_ce_tile<T, Rows>(call, tile);
}
template <typename T>
DRF_INLINE void smooth_ce_of_columns(const LossCall& call, const NoWeights&, const Tile& tile) {
  smooth_ce_tile<T, Columns>(call, tile);
}
DRF_LOSS_CLONES(smooth_ce_of_rows, NoWeights)
DRF_LOSS_CLONES(smooth_ce_of_columns, NoWeights)

template <template <typename> typename Layout>
std::size_t smooth_ce_scratch_for(const LossCall& call) {
  return call.dtype == Dtype::kFloat64 ? smooth_ce_scratch<double, Layout<double>>(call)
                                       : smooth_ce_scratch<float, Layout<float>>(call);
}

}  // namespace

void smooth_ce(const LossCall& call) {
  const bool few = call.classes <= kFewClasses;
  const auto tile_function = few ? smooth_ce_of_columns_for(call.dtype, active_isa())
                                 : smooth_ce_of_rows_for(call.dtype, active_isa());
  const std::size_t bytes =
      few ? smooth_ce_scratch_for<Columns>(call) : smooth_ce_scratch_for<Rows>(call);
  run_tiles(call, bytes, [&](const Tile& tile) { tile_function(call, NoWeights{}, tile); });
}

}  // namespace drf_fast::cpu
