// adversary_step on the CPU: everything between two passes through the network.
//
// An image goes through three short loops: the sum over its copies and its norm; the ascent and the
// length of the displacement from the clean image; ball, box and the final distance. In between it
// is kept in the memory of the result (in scratch for the half precisions), which for one image
// stays in cache, and its noisy rows are written right after. So memory is read once for the
// gradient and written once for the outputs.
//
// Norms are float64 sums over kLanes fixed lanes, hence the same bits for any instruction set and
// any number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/noise_row.h"
#include "cpu/operations.h"
#include "cpu/sum_rows.h"

namespace drf_fast::cpu {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kChunk = 1024;  // pixels; a multiple of kLanes, small enough for L1

// Square root of a sum of squares that arrives in chunks.
class Norm {
 public:
  // value(i) for i in [0, size). Every chunk but the last has a multiple of kLanes values.
  template <typename Value>
  DRF_INLINE void add(std::int64_t size, Value value) {
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      DRF_SIMD  // else the loop is unrolled into scalar code
      for (std::int64_t j = 0; j < kLanes; ++j) {
        const double v = static_cast<double>(value(i + j));
        lanes_[j] += v * v;
      }
    }
    for (std::int64_t j = 0; i + j < size; ++j) {
      const double v = static_cast<double>(value(i + j));
      lanes_[j] += v * v;
    }
  }

  DRF_INLINE double value() const {
    double sum = 0.0;
    for (const double lane : lanes_) sum += lane;
    return std::sqrt(sum);
  }

 private:
  double lanes_[kLanes] = {};
};

// The comparisons propagate a NaN, as torch.clamp does.
template <typename Wide>
DRF_INLINE Wide clamped(Wide value, Wide low, Wide high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// work = sum of the copies' gradients.
template <typename T, typename Wide = decltype(widen(T{}))>
DRF_INLINE void sum_body(const T* __restrict grad, std::int64_t num_samples, std::int64_t pixels,
                         Wide* __restrict work, double* norm) {
  Norm result;
  for (std::int64_t begin = 0; begin < pixels; begin += kChunk) {
    const std::int64_t size = std::min(kChunk, pixels - begin);
    Wide* total = work + begin;
    sum_rows(grad + begin, pixels, num_samples, total, size);
    result.add(size, [&](std::int64_t i) { return total[i]; });
  }
  *norm = result.value();
}

// work = x_adv + scale * work, in [low, high].
template <typename T, typename Wide = decltype(widen(T{}))>
DRF_INLINE void ascend_body(const T* __restrict origin, const T* __restrict present, double scale,
                            Wide low, Wide high, std::int64_t pixels, Wide* __restrict work,
                            double* length) {
  Norm result;
  for (std::int64_t begin = 0; begin < pixels; begin += kChunk) {
    const std::int64_t size = std::min(kChunk, pixels - begin);
    Wide* moved = work + begin;
    const T* x = origin + begin;
    const T* x_adv = present + begin;
    for (std::int64_t i = 0; i < size; ++i) {
      // In float64: where the network is confident, 1/norm can overflow float32.
      const Wide ascent = static_cast<Wide>(static_cast<double>(moved[i]) * scale);
      moved[i] = clamped(widen(x_adv[i]) + ascent, low, high);
    }
    result.add(size, [&](std::int64_t i) { return moved[i] - widen(x[i]); });
  }
  *length = result.value();
}

// out = x + factor * (work - x), in [low, high] and rounded; work is out where T is Wide.
template <typename T, typename Wide = decltype(widen(T{}))>
DRF_INLINE void finish_body(const T* __restrict origin, double factor, Wide low, Wide high,
                            std::int64_t pixels, Wide* work, T* out, double* distance) {
  Norm result;
  const Wide shrink = static_cast<Wide>(factor);
  for (std::int64_t begin = 0; begin < pixels; begin += kChunk) {
    const std::int64_t size = std::min(kChunk, pixels - begin);
    const T* x = origin + begin;
    Wide* moved = work + begin;
    if (shrink < 1) {
      for (std::int64_t i = 0; i < size; ++i) {
        const Wide start = widen(x[i]);
        moved[i] = clamped(start + (moved[i] - start) * shrink, low, high);
      }
    } else {
      for (std::int64_t i = 0; i < size; ++i) moved[i] = clamped(moved[i], low, high);
    }
    if constexpr (!std::is_same_v<T, Wide>) {
      for (std::int64_t i = 0; i < size; ++i) {
        out[begin + i] = narrow<T>(moved[i]);
        moved[i] = widen(out[begin + i]);
      }
    }
    result.add(size, [&](std::int64_t i) { return moved[i] - widen(x[i]); });
  }
  *distance = result.value();
}

DRF_ISA_TEMPLATE_CLONES(sum, sum_body,
                        (const T* grad, std::int64_t num_samples, std::int64_t pixels,
                         decltype(widen(T{}))* work, double* norm),
                        (grad, num_samples, pixels, work, norm))

DRF_ISA_TEMPLATE_CLONES(ascend, ascend_body,
                        (const T* x, const T* x_adv, double scale, decltype(widen(T{})) low,
                         decltype(widen(T{})) high, std::int64_t pixels, decltype(widen(T{}))* work,
                         double* length),
                        (x, x_adv, scale, low, high, pixels, work, length))

DRF_ISA_TEMPLATE_CLONES(finish, finish_body,
                        (const T* x, double factor, decltype(widen(T{})) low,
                         decltype(widen(T{})) high, std::int64_t pixels, decltype(widen(T{}))* work,
                         T* out, double* distance),
                        (x, factor, low, high, pixels, work, out, distance))

// The factor, at most 1, by which the ball scales a displacement of this length; for a NaN finish
// scales nothing.
double shrinkage(double length, const AdversaryStep& call) {
  const double lam = call.lam > 1.0 ? 1.0 : call.lam;
  const double positive = std::max(length, std::numeric_limits<double>::min());
  const auto at_least_0 = [](double value) { return value < 0.0 ? 0.0 : value; };
  switch (call.ball) {
    case Ball::kNone:
      return 1.0;
    case Ball::kShrink:
      return 1.0 - lam;
    case Ball::kProx:
      return length > 0.0 ? at_least_0(1.0 - call.step_size * call.lam / positive) : 1.0;
    case Ball::kHard:
      return 1.0 - at_least_0(1.0 - call.epsilon / positive);
    case Ball::kExcess:
      return 1.0 - lam * at_least_0(1.0 - call.epsilon / positive);
    case Ball::kUdr:  // negative where lambda is large: beyond x, on its other side
      return 1.0 - call.lam * at_least_0(1.0 - call.epsilon / positive);
  }
  return 1.0;
}

template <typename T>
void adversary_step_as(const T* grad, const T* x, const T* x_adv, T* out, T* noisy,
                       decltype(widen(T{}))* distance, const AdversaryStep& call, int threads) {
  using Wide = decltype(widen(T{}));
  constexpr Wide kInfinity = std::numeric_limits<Wide>::infinity();
  const NoisyRepeat& noise = call.noise;
  const std::int64_t batch = noise.batch, samples = noise.num_samples;
  const std::int64_t pixels = noise.channels * noise.area;
  const Isa isa = active_isa();
  const auto sum = sum_for<T>(isa);
  const auto ascend = ascend_for<T>(isa);
  const auto finish = finish_for<T>(isa);
  const Wide low = call.clamp ? static_cast<Wide>(call.low) : -kInfinity;
  const Wide high = call.clamp ? static_cast<Wide>(call.high) : kInfinity;
  // These balls measure the displacement after clamping, the others before it.
  const bool clamp_first =
      call.ball == Ball::kNone || call.ball == Ball::kHard || call.ball == Ball::kExcess;
  const Wide first_low = clamp_first ? low : -kInfinity;
  const Wide first_high = clamp_first ? high : kInfinity;
  const bool all_norms_first = call.grad_norm == GradNorm::kBatch;

  expect_writes(noisy, sizeof(T) * static_cast<std::size_t>(batch * samples * pixels));

  // Each thread gets one part, of consecutive images.
  const std::int64_t parts = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, batch));
  const auto for_images = [&](auto each) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t end = batch * (part + 1) / parts;
      for (std::int64_t image = batch * part / parts; image < end; ++image) each(image, part);
    }
  };
  const std::int64_t slots = std::is_same_v<T, Wide> ? 0 : all_norms_first ? batch : parts;
  const std::unique_ptr<Wide[]> scratch(slots > 0 ? new Wide[slots * pixels] : nullptr);
  const auto work_of = [&](std::int64_t image, std::int64_t part) -> Wide* {
    if constexpr (std::is_same_v<T, Wide>) return out + image * pixels;
    return scratch.get() + (all_norms_first ? image : part) * pixels;
  };

  double mean_norm = 0.0;
  if (all_norms_first) {
    const std::unique_ptr<double[]> norms(new double[batch]);
    for_images([&](std::int64_t image, std::int64_t part) {
      sum(grad + image * samples * pixels, samples, pixels, work_of(image, part), &norms[image]);
    });
    for (std::int64_t image = 0; image < batch; ++image) mean_norm += norms[image];
    mean_norm /= static_cast<double>(batch);
  }

  // With few images the threads divide the noisy rows instead: noise is most of the work.
  const bool rows_apart = batch < 4 * parts;
  for_images([&](std::int64_t image, std::int64_t part) {
    const std::int64_t at = image * pixels;
    Wide* work = work_of(image, part);
    double norm = mean_norm, length, final_length;
    if (!all_norms_first) sum(grad + at * samples, samples, pixels, work, &norm);
    const double scale = call.grad_norm == GradNorm::kNone ? call.step_size
                         : norm > 0.0                      ? call.step_size / norm
                                                           : 0.0;
    ascend(x + at, x_adv + at, scale, first_low, first_high, pixels, work, &length);
    finish(x + at, shrinkage(length, call), low, high, pixels, work, out + at, &final_length);
    distance[image] = static_cast<Wide>(final_length);
    if (rows_apart) return;
    for (std::int64_t row = image * samples; row < (image + 1) * samples; ++row) {
      write_noisy_row(out + at, noisy + row * pixels, noise, row, isa);
    }
  });
  if (!rows_apart) return;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t row = 0; row < batch * samples; ++row) {
    write_noisy_row(out + row / samples * pixels, noisy + row * pixels, noise, row, isa);
  }
}

}  // namespace

void adversary_step(const AdversaryTensors& tensors, Dtype dtype, const AdversaryStep& call,
                    int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    adversary_step_as(static_cast<const T*>(tensors.grad), static_cast<const T*>(tensors.x),
                      static_cast<const T*>(tensors.x_adv), static_cast<T*>(tensors.out),
                      static_cast<T*>(tensors.noisy),
                      static_cast<decltype(widen(type))*>(tensors.distance), call, threads);
  });
}

}  // namespace drf_fast::cpu
