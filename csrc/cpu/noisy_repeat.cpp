// noisy_repeat on the CPU: x + sigma * normal for m copies of each image, and the sum that is its
// backward.
#include <algorithm>
#include <cstdint>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/noise_row.h"
#include "cpu/operations.h"
#include "cpu/sum_rows.h"

namespace drf_fast::cpu {
namespace {

template <typename T>
DRF_INLINE void sum_copies_body(const T* grad, T* __restrict out, std::int64_t pixels,
                                std::int64_t num_samples, std::int64_t size) {
  constexpr std::int64_t kChunk = 1024;
  decltype(widen(*grad)) total[kChunk];
  for (std::int64_t begin = 0; begin < size; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, size - begin);
    sum_rows(grad + begin, pixels, num_samples, total, count);
    for (std::int64_t i = 0; i < count; ++i) out[begin + i] = narrow<T>(total[i]);
  }
}

DRF_ISA_TEMPLATE_CLONES(sum_copies, sum_copies_body,
                        (const T* grad, T* out, std::int64_t pixels, std::int64_t num_samples,
                         std::int64_t size),
                        (grad, out, pixels, num_samples, size))

}  // namespace

void noisy_repeat(const void* x, void* out, Dtype dtype, const NoisyRepeat& call,
                  [[maybe_unused]] int threads) {
  const Isa isa = active_isa();
  const std::int64_t pixels = call.channels * call.area;
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    expect_writes(out,
                  sizeof(T) * static_cast<std::size_t>(call.batch * call.num_samples * pixels));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (std::int64_t row = 0; row < call.batch * call.num_samples; ++row) {
      write_noisy_row(static_cast<const T*>(x) + row / call.num_samples * pixels,
                      static_cast<T*>(out) + row * pixels, call, row, isa);
    }
  });
}

void noisy_repeat_backward(const void* grad, void* out, Dtype dtype, std::int64_t batch,
                           std::int64_t num_samples, std::int64_t pixels,
                           [[maybe_unused]] int threads) {
  constexpr std::int64_t kPart = 4096;  // pixels: threads divide even a batch of one large image
  const std::int64_t parts = (pixels + kPart - 1) / kPart;
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const auto sum = sum_copies_for<T>(active_isa());
    expect_writes(out, sizeof(T) * static_cast<std::size_t>(batch * pixels));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (std::int64_t part = 0; part < batch * parts; ++part) {
      const std::int64_t image = part / parts, begin = part % parts * kPart;
      sum(static_cast<const T*>(grad) + image * num_samples * pixels + begin,
          static_cast<T*>(out) + image * pixels + begin, pixels, num_samples,
          std::min(kPart, pixels - begin));
    }
  });
}

}  // namespace drf_fast::cpu
