// macer_loss on the CPU: -log(Fbar^y + 1e-10) + lam sigma/2 (gamma - xi) and its gradient, from one
// read of the logits.
//
// The softmax q_i of beta times the logits and all that follows from it is float64: xi is a
// difference of normal quantiles far in their tails. backends/reference/operations.py has the
// derivation.
#include "common/normal_quantile.h"
#include "cpu/rows.h"

namespace drf_fast::cpu {
namespace {

struct MacerWeights {
  double sigma, lam, gamma, beta;
};

// Phi^-1(p), given p and 1 - p so that neither loses digits; infinite where one of them is 0.
double normal_quantile(double p, double complement) {
  if (p > complement) return -normal_quantile(complement, p);
  if (!(p > 0.0)) return -static_cast<double>(INFINITY);
  return p <= 0.42 ? -drf_fast::upper_normal_quantile(p)
                   : -drf_fast::central_normal_quantile((complement - p) / 2.0);
}

// The margin term of one image: its value, and its slopes with respect to the mean of q at the
// second class and at all but the first one. (A constant added to all slopes cancels in the
// gradient of the softmax; this one makes that of the first class 0, where q may be nearly 1.)
struct Margin {
  bool active;
  std::int64_t first, second;
  double value, slope_second, slope_others;
};

inline double inverse_density(double quantile) {
  return drf_fast::kSqrt2Pi * drf_fast::exp_(0.5 * quantile * quantile);
}

template <typename A>
std::size_t macer_scratch(const LossCall& call) {
  const std::int64_t rows = images_per_tile(call) * call.samples, width = padded(call.classes);
  return Rows<A>::bytes(call, rows) + Scratch::bytes(rows, sizeof(A)) +
         Scratch::bytes(call.samples * width, sizeof(double)) +
         Scratch::bytes(call.samples, sizeof(double)) + Scratch::bytes(width, sizeof(double));
}

// q = softmax(beta row), padding 0.
template <typename A>
DRF_INLINE void scaled_softmax(const A* __restrict row, A peak, double beta, double* __restrict q,
                               std::int64_t width) {
  for (std::int64_t k = 0; k < width; ++k) {
    q[k] = beta * (static_cast<double>(row[k]) - static_cast<double>(peak));
  }
  const double inverse_total = 1.0 / exp_row(q, width, 0.0);
  for (std::int64_t k = 0; k < width; ++k) q[k] *= inverse_total;
}

DRF_INLINE double sum_of(const double* values, std::int64_t width) {
  double lane[kLanes] = {};
  for (std::int64_t k = 0; k < width; k += kLanes) {
    DRF_SIMD
    for (int j = 0; j < kLanes; ++j) lane[j] += values[k + j];
  }
  return sum_of_lanes(lane);
}

// The lowest index of the largest of `classes` >= 2 values, index `but` left out.
inline std::int64_t place_of_largest(const double* values, std::int64_t classes,
                                     std::int64_t but = -1) {
  std::int64_t best = but == 0 ? 1 : 0;
  for (std::int64_t k = best + 1; k < classes; ++k) {
    if (k != but && values[k] > values[best]) best = k;
  }
  return best;
}

// q holds the samples of one image; rest[i] becomes their sum without the first class.
DRF_INLINE Margin margin_of(double* q, double* rest, double* mean_q, std::int64_t samples,
                            std::int64_t classes, std::int64_t label, const MacerWeights& weights) {
  const std::int64_t width = padded(classes);
  const double inverse_m = 1.0 / static_cast<double>(samples);
  std::fill(mean_q, mean_q + width, 0.0);
  for (std::int64_t i = 0; i < samples; ++i) {
    for (std::int64_t k = 0; k < width; ++k) mean_q[k] += q[i * width + k];
  }
  Margin margin{};
  margin.first = place_of_largest(mean_q, classes);
  margin.second = place_of_largest(mean_q, classes, margin.first);
  // 1 - p1 is summed from the other classes, so that it keeps its digits.
  double complement = 0.0;
  for (std::int64_t i = 0; i < samples; ++i) {
    double& at_first = q[i * width + margin.first];
    const double kept = at_first;
    at_first = 0.0;
    rest[i] = sum_of(q + i * width, width);
    at_first = kept;
    complement += rest[i];
  }
  complement *= inverse_m;
  const double p2 = mean_q[margin.second] * inverse_m;
  const double quantile1 = normal_quantile(mean_q[margin.first] * inverse_m, complement);
  const double quantile2 = normal_quantile(p2, 1.0 - p2);
  const double xi = quantile1 - quantile2;
  margin.active = margin.first == label && std::isfinite(xi) && xi <= weights.gamma;
  if (!margin.active) return margin;
  const double factor = weights.lam * weights.sigma / 2.0;
  margin.value = factor * (weights.gamma - xi);
  margin.slope_second = factor * inverse_density(quantile2);
  margin.slope_others = factor * inverse_density(quantile1);
  return margin;
}

// row += beta q (slope - sum_k q_k slope_k)
template <typename A>
DRF_INLINE void add_margin(A* __restrict row, const double* __restrict q, std::int64_t width,
                           const Margin& margin, double rest, double beta) {
  const double mean_slope = margin.slope_others * rest + margin.slope_second * q[margin.second];
  const double others = beta * (margin.slope_others - mean_slope);
  const double first = static_cast<double>(row[margin.first]) - beta * q[margin.first] * mean_slope;
  const double second =
      static_cast<double>(row[margin.second]) +
      beta * q[margin.second] * (margin.slope_second + (margin.slope_others - mean_slope));
  for (std::int64_t k = 0; k < width; ++k) {
    row[k] = static_cast<A>(static_cast<double>(row[k]) + q[k] * others);
  }
  row[margin.first] = static_cast<A>(first);
  row[margin.second] = static_cast<A>(second);
}

template <typename T>
DRF_INLINE void macer_tile(const LossCall& call, const MacerWeights& weights, const Tile& tile) {
  using A = decltype(widen(T{}));
  const std::int64_t samples = call.samples, count = tile.images * samples;
  Scratch scratch(tile.scratch);
  Rows<A> rows(call, count, scratch);
  A* factors = scratch.take<A>(count);
  std::fill(factors, factors + count, static_cast<A>(tile.scale / static_cast<double>(samples)));
  const std::int64_t width = rows.width;
  double* q = scratch.take<double>(samples * width);
  double* rest = scratch.take<double>(samples);
  double* mean_q = scratch.take<double>(width);

  load_rows<T>(call, tile, rows, 0, samples);
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * samples, label = call.target[tile.first + image];
    for (std::int64_t i = 0; i < samples; ++i) {
      const std::int64_t row = first + i;
      scaled_softmax(rows.values(row), rows.peaks[row], weights.beta, q + i * width, width);
    }
    take_label_out(rows, first, first + samples, label);
    exp_rows(rows, first, first + samples);
    const bool valid = all_valid(rows, first, samples);
    tile.losses[tile.first + image] = {0.0, valid};
    if (!valid) continue;
    double mean_p = 0.0;
    for (std::int64_t row = first; row < first + samples; ++row) {
      mean_p += static_cast<double>(rows.label_exp[row]) / rows.totals[row];
    }
    mean_p = mean_p / static_cast<double>(samples) + 1e-10;
    const Margin margin = margin_of(q, rest, mean_q, samples, call.classes, label, weights);
    tile.losses[tile.first + image].value = margin.value - drf_fast::log_(mean_p);
    if (call.grad == nullptr) continue;
    for (std::int64_t i = 0; i < samples; ++i) {
      const std::int64_t row = first + i;
      A* __restrict values = rows.values(row);
      const double p_label = static_cast<double>(rows.label_exp[row]) / rows.totals[row];
      const double factor = p_label / mean_p / rows.totals[row];
      const A narrow_factor = static_cast<A>(factor);
      for (std::int64_t k = 0; k < width; ++k) values[k] *= narrow_factor;
      values[label] = static_cast<A>(-rows.rests[row] * factor);
      if (margin.active) add_margin(values, q + i * width, width, margin, rest[i], weights.beta);
    }
  }
  if (call.grad != nullptr) store_rows<T>(call, tile, rows, factors);
}

DRF_LOSS_CLONES(macer_tile, MacerWeights)

}  // namespace

void macer_loss(const LossCall& call, double sigma, double lam, double gamma, double beta) {
  const auto tile_function = macer_tile_for(call.dtype, active_isa());
  const std::size_t bytes =
      call.dtype == Dtype::kFloat64 ? macer_scratch<double>(call) : macer_scratch<float>(call);
  const MacerWeights weights{sigma, lam, gamma, beta};
  run_tiles(call, bytes, [&](const Tile& tile) { tile_function(call, weights, tile); });
}

}  // namespace drf_fast::cpu
