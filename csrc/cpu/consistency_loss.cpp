// consistency_loss on the CPU: mean_i CE_i + lam mean_i KL(Fbar || F_i) + eta H(Fbar), Fbar =
// mean_i F_i, and its gradient, from one read of the logits.
//
// backends/reference/operations.py has the derivation: with gap_k = log Fbar_k - mean_i log F_i^k
// the divergence is sum_k Fbar_k gap_k, and with a_k = lam gap_k - eta log Fbar_k the gradient of
// row i, times m, is F_i (a - sum_k F_i^k a_k) - lam (Fbar - F_i) + F_i - 1[k = y].
#include <limits>

#include "cpu/rows.h"

namespace drf_fast::cpu {
namespace {

struct ConsistencyWeights {
  double lam, eta;
};

// Sums over the samples of one image, a value for each class; the padding stays 0.
template <typename A>
struct ClassColumns {
  A* mean_p;
  A* sum_log;  // sum_i (logit - peak), later the gap
  A* slope;    // a_k
};

template <typename A>
std::size_t consistency_scratch(const LossCall& call) {
  const std::int64_t rows = images_per_tile(call) * call.samples;
  return Rows<A>::bytes(call, rows) + Scratch::bytes(rows, sizeof(A)) +
         3 * Scratch::bytes(padded(call.classes), sizeof(A));
}

// sum_log += row - peak
template <typename A>
DRF_INLINE void add_logs(A* __restrict sum_log, const A* __restrict row, std::int64_t width,
                         A peak) {
  for (std::int64_t k = 0; k < width; ++k) sum_log[k] += row[k] - peak;
}

// row = row / total, the probabilities; mean_p += row.
template <typename A>
DRF_INLINE void add_probabilities(A* __restrict mean_p, A* __restrict row, std::int64_t width,
                                  A inverse_total) {
  for (std::int64_t k = 0; k < width; ++k) {
    row[k] *= inverse_total;
    mean_p[k] += row[k];
  }
}

struct Divergence {
  double kl, entropy;
  bool has_infinity;  // some sample excludes some class
};

// Turns the sums over samples into means, gap and slope; returns the sums over classes.
template <typename A>
DRF_INLINE Divergence finish_columns(const ClassColumns<A>& columns, std::int64_t width,
                                     A inverse_m, A mean_log_total, A lam, A eta) {
  constexpr A kTiny = std::numeric_limits<A>::min();
  A* __restrict mean_p = columns.mean_p;
  A* __restrict gaps = columns.sum_log;
  A* __restrict slope = columns.slope;
  Divergence result{0.0, 0.0, false};
  for (std::int64_t begin = 0; begin < width; begin += kChunk) {
    const std::int64_t end = begin + kChunk < width ? begin + kChunk : width;
    A kl[kLanes] = {}, entropy[kLanes] = {}, lowest[kLanes] = {};
    for (std::int64_t k = begin; k < end; k += kLanes) {
      DRF_SIMD
      for (int j = 0; j < kLanes; ++j) {
        const A p = mean_p[k + j] * inverse_m;
        const A mean_log = gaps[k + j] * inverse_m - mean_log_total;
        // A probability that underflows in every sample adds 0 log 0 = 0.
        const A log_p = p >= kTiny ? log_(p >= kTiny ? p : kTiny) : A{0};
        const A gap =
            p >= kTiny && mean_log > -std::numeric_limits<A>::infinity() ? log_p - mean_log : A{0};
        mean_p[k + j] = p;
        slope[k + j] = lam * gap - eta * log_p;
        gaps[k + j] = gap;
        kl[j] += p * gap;
        entropy[j] -= p * log_p;
        lowest[j] = mean_log < lowest[j] ? mean_log : lowest[j];
      }
    }
    result.kl += static_cast<double>(sum_of_lanes(kl));
    result.entropy += static_cast<double>(sum_of_lanes(entropy));
    for (int j = 0; j < kLanes; ++j) {
      result.has_infinity |= lowest[j] == -std::numeric_limits<A>::infinity();
    }
  }
  // Subtracting the mean leaves the gradient of the softmax as it is, and less cancels in its sums.
  const A mean_slope = static_cast<A>(static_cast<double>(lam) * result.kl +
                                      static_cast<double>(eta) * result.entropy);
  for (std::int64_t k = 0; k < width; ++k) slope[k] -= mean_slope;
  return result;
}

// sum_k row_k slope_k
template <typename A>
DRF_INLINE double dot(const A* row, const A* slope, std::int64_t width) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < width; begin += kChunk) {
    const std::int64_t end = begin + kChunk < width ? begin + kChunk : width;
    A lane[kLanes] = {};
    for (std::int64_t k = begin; k < end; k += kLanes) {
      DRF_SIMD
      for (int j = 0; j < kLanes; ++j) lane[j] += row[k + j] * slope[k + j];
    }
    total += static_cast<double>(sum_of_lanes(lane));
  }
  return total;
}

// Whether the divergence is infinite: a class has probability 0 in some samples of the image but
// not in all, or the sum of its log-probabilities overflows while some probability is above 0.
// Called only where the mean of some class's log-probabilities is -inf.
template <typename T, typename A>
bool excludes_a_possible_class(const LossCall& call, std::int64_t image, const A* peaks) {
  const T* logits = static_cast<const T*>(call.logits) + image * call.logits_image_stride;
  for (std::int64_t k = 0; k < call.classes; ++k) {
    bool excluded = false, possible = false, counts = false;
    A sum{0};
    for (std::int64_t i = 0; i < call.samples; ++i) {
      const A log_p = widen(logits[i * call.logits_sample_stride + k]) - peaks[i];
      excluded |= log_p == -std::numeric_limits<A>::infinity();
      possible |= log_p > -std::numeric_limits<A>::infinity();
      counts |= exp_(log_p) > A{0};
      sum += log_p;
    }
    const bool overflows = sum == -std::numeric_limits<A>::infinity();
    if (excluded ? possible : counts && overflows) return true;
  }
  return false;
}

// p = p (slope - mean_slope) - lam (mean_p - p) + p - 1[k = label], with p - 1 given at the label.
template <typename A>
DRF_INLINE void gradient_row(const ClassColumns<A>& columns, A* __restrict p, std::int64_t width,
                             A lam, std::int64_t label, A label_minus_1) {
  const A* __restrict mean_p = columns.mean_p;
  const A* __restrict slope = columns.slope;
  const A mean_slope = static_cast<A>(dot(p, slope, width));
  const A at_label = p[label] * (slope[label] - mean_slope) - lam * (mean_p[label] - p[label]);
  for (std::int64_t k = 0; k < width; ++k) {
    p[k] = p[k] * (slope[k] - mean_slope) - lam * (mean_p[k] - p[k]) + p[k];
  }
  p[label] = at_label + label_minus_1;
}

template <typename T>
DRF_INLINE void consistency_tile(const LossCall& call, const ConsistencyWeights& weights,
                                 const Tile& tile) {
  using A = decltype(widen(T{}));
  const std::int64_t samples = call.samples, count = tile.images * samples;
  const double inverse_m = 1.0 / static_cast<double>(samples);
  const A lam = static_cast<A>(weights.lam), eta = static_cast<A>(weights.eta);
  Scratch scratch(tile.scratch);
  Rows<A> rows(call, count, scratch);
  A* factors = scratch.take<A>(count);
  const std::int64_t width = rows.width;
  const ClassColumns<A> columns{scratch.take<A>(width), scratch.take<A>(width),
                                scratch.take<A>(width)};
  std::fill(factors, factors + count, static_cast<A>(tile.scale * inverse_m));

  load_rows<T>(call, tile, rows, 0, samples);
  for (std::int64_t image = 0; image < tile.images; ++image) {
    const std::int64_t first = image * samples, end = first + samples;
    const std::int64_t label = call.target[tile.first + image];
    std::fill(columns.mean_p, columns.mean_p + width, A{0});
    std::fill(columns.sum_log, columns.sum_log + width, A{0});
    for (std::int64_t row = first; row < end; ++row) {
      add_logs(columns.sum_log, rows.values(row), width, rows.peaks[row]);
    }
    std::fill(columns.sum_log + call.classes, columns.sum_log + width, A{0});
    take_label_out(rows, first, end, label);
    exp_rows(rows, first, end);
    double log_totals = 0.0, log_p = 0.0;
    for (std::int64_t row = first; row < end; ++row) {
      rows.values(row)[label] = rows.label_exp[row];
      log_totals += static_cast<double>(rows.log_totals[row]);
      log_p += static_cast<double>(rows.log_p[row]);
    }
    for (std::int64_t row = first; row < end; ++row) {
      const A inverse_total = static_cast<A>(1.0 / rows.totals[row]);
      add_probabilities(columns.mean_p, rows.values(row), width, inverse_total);
    }
    const Divergence divergence = finish_columns(columns, width, static_cast<A>(inverse_m),
                                                 static_cast<A>(log_totals * inverse_m), lam, eta);
    const bool infinite =
        divergence.has_infinity &&
        excludes_a_possible_class<T>(call, tile.first + image, rows.peaks + first);
    const double kl = infinite ? static_cast<double>(INFINITY) : divergence.kl;
    // lam = 0 is plain cross-entropy, even where the divergence is infinite.
    const double penalty = weights.lam > 0.0 ? weights.lam * kl : 0.0;
    const double loss = penalty + weights.eta * divergence.entropy - log_p * inverse_m;
    tile.losses[tile.first + image] = {loss, all_valid(rows, first, samples)};
    if (call.grad == nullptr) continue;
    for (std::int64_t row = first; row < end; ++row) {
      const A label_minus_1 = static_cast<A>(-rows.rests[row] / rows.totals[row]);
      gradient_row(columns, rows.values(row), width, lam, label, label_minus_1);
    }
  }
  if (call.grad != nullptr) store_rows<T>(call, tile, rows, factors);
}

DRF_LOSS_CLONES(consistency_tile, ConsistencyWeights)

}  // namespace

void consistency_loss(const LossCall& call, double lam, double eta) {
  const auto tile_function = consistency_tile_for(call.dtype, active_isa());
  const std::size_t bytes = call.dtype == Dtype::kFloat64 ? consistency_scratch<double>(call)
                                                          : consistency_scratch<float>(call);
  const ConsistencyWeights weights{lam, eta};
  run_tiles(call, bytes, [&](const Tile& tile) { tile_function(call, weights, tile); });
}

}  // namespace drf_fast::cpu
