// noisy_repeat on the CPU: x + sigma * normal for m copies of each image, and the sum that is its
// backward.
//
// A row is made in blocks of counter groups: first the normals of the block, in a buffer that stays
// in the first cache, then one pass that reads x and writes the row. What a block costs is its
// integer and float arithmetic; memory is read once and written once.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/normals.h"
#include "common/philox.h"
#include "cpu/floats.h"
#include "cpu/isa.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {
namespace {

constexpr std::int64_t kBlock = 256;  // groups; the four runs of their normals fill 4 KiB

// Who a row's noise belongs to, as Philox wants it.
struct Stream {
  std::uint32_t sample, image, stream, key_low, key_high;
};

DRF_INLINE void fill_normals_body(float* __restrict z, std::uint32_t first, std::int64_t groups,
                                  Stream s) {
  for (std::int64_t i = 0; i < groups; ++i) {
    const drf::Words w = drf::philox(first + static_cast<std::uint32_t>(i), s.sample, s.image,
                                     s.stream, s.key_low, s.key_high);
    drf::normal_pair(w.w0, w.w1, z[i], z[kBlock + i]);
    drf::normal_pair(w.w2, w.w3, z[2 * kBlock + i], z[3 * kBlock + i]);
  }
}

DRF_ISA_CLONES(fill_normals, fill_normals_body,
               (float* z, std::uint32_t first, std::int64_t groups, Stream s),
               (z, first, groups, s))

DRF_INLINE void add_noise_body(float* __restrict out, const float* __restrict x,
                               const float* __restrict z, float sigma, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) out[i] = x[i] + sigma * z[i];
}

DRF_ISA_CLONES(add_noise, add_noise_body,
               (float* out, const float* x, const float* z, float sigma, std::int64_t size),
               (out, x, z, sigma, size))

// Where logical NCHW pixel p of an image lies in memory: itself, or, in channels_last, at
// (p % area) * channels + p / area.
struct Layout {
  std::int64_t channels, area;
  bool channels_last;
};

// out[p] = x[p] + sigma z[p - begin] for the logical pixels [begin, end) of one image.
template <typename T, typename AddNoise>
void write_run(T* out, const T* x, const float* z, double sigma, std::int64_t begin,
               std::int64_t end, const Layout& layout, AddNoise add) {
  using Wide = decltype(widen(*x));
  const Wide scale = static_cast<Wide>(sigma);
  if (!layout.channels_last) {
    if constexpr (std::is_same_v<T, float>) {
      add(out + begin, x + begin, z, scale, end - begin);
    } else {
      for (std::int64_t p = begin; p < end; ++p) {
        out[p] = narrow<T>(widen(x[p]) + scale * static_cast<Wide>(z[p - begin]));
      }
    }
    return;
  }
  for (std::int64_t p = begin; p < end;) {
    const std::int64_t channel = p / layout.area;
    const std::int64_t stop = std::min(end, (channel + 1) * layout.area);
    for (; p < stop; ++p) {
      const std::int64_t at = (p - channel * layout.area) * layout.channels + channel;
      out[at] = narrow<T>(widen(x[at]) + scale * static_cast<Wide>(z[p - begin]));
    }
  }
}

template <typename T>
void noisy_repeat_as(const T* x, T* out, const NoisyRepeat& call, int threads) {
  const Isa isa = active_isa();
  const auto fill = fill_normals_for(isa);
  const auto add = add_noise_for(isa);
  const std::int64_t pixels = call.channels * call.area;
  const std::int64_t groups = 8 * ((pixels + 31) / 32);
  const Layout layout{call.channels, call.area, call.channels_last};
  const std::int64_t rows = call.batch * call.num_samples;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t row = 0; row < rows; ++row) {
    alignas(64) float z[4 * kBlock];
    const std::int64_t image = row / call.num_samples;
    const Stream stream{
        static_cast<std::uint32_t>(call.sample_offset + row % call.num_samples),
        static_cast<std::uint32_t>(call.image_ids[image]), static_cast<std::uint32_t>(call.stream),
        static_cast<std::uint32_t>(call.key), static_cast<std::uint32_t>(call.key >> 32)};
    for (std::int64_t first = 0; first < groups; first += kBlock) {
      const std::int64_t count = std::min(kBlock, groups - first);
      fill(z, static_cast<std::uint32_t>(first), count, stream);
      for (std::int64_t j = 0; j < 4; ++j) {
        const std::int64_t begin = std::min(pixels, j * groups + first);
        const std::int64_t end = std::min(pixels, begin + count);
        write_run(out + row * pixels, x + image * pixels, z + j * kBlock, call.sigma, begin, end,
                  layout, add);
      }
    }
  }
}

// out[image] = sum over its m rows, in the order of the rows, in the arithmetic type.
template <typename T>
void sum_copies(const T* grad, T* out, std::int64_t batch, std::int64_t num_samples,
                std::int64_t pixels, int threads) {
  constexpr std::int64_t kChunk = 1024;
  const std::int64_t chunks = (pixels + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t part = 0; part < batch * chunks; ++part) {
    const std::int64_t image = part / chunks, begin = part % chunks * kChunk;
    const std::int64_t size = std::min(kChunk, pixels - begin);
    decltype(widen(*grad)) total[kChunk];
    const T* row = grad + image * num_samples * pixels + begin;
    for (std::int64_t i = 0; i < size; ++i) total[i] = widen(row[i]);
    for (std::int64_t sample = 1; sample < num_samples; ++sample) {
      row += pixels;
      for (std::int64_t i = 0; i < size; ++i) total[i] += widen(row[i]);
    }
    T* to = out + image * pixels + begin;
    for (std::int64_t i = 0; i < size; ++i) to[i] = narrow<T>(total[i]);
  }
}

}  // namespace

void noisy_repeat(const void* x, void* out, Dtype dtype, const NoisyRepeat& call, int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    noisy_repeat_as(static_cast<const T*>(x), static_cast<T*>(out), call, threads);
  });
}

void noisy_repeat_backward(const void* grad, void* out, Dtype dtype, std::int64_t batch,
                           std::int64_t num_samples, std::int64_t pixels, int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    sum_copies(static_cast<const T*>(grad), static_cast<T*>(out), batch, num_samples, pixels,
               threads);
  });
}

}  // namespace drf_fast::cpu
