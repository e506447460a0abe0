// A noisy row is made in blocks of counter groups: first the random words of the block, then its
// normals, in buffers that stay in the L1 cache, then one pass that reads x and writes the row.
// Arithmetic bounds the time of a block; memory is read and written once.
#include "cpu/noise_row.h"

#include <algorithm>

#include "common/normals.h"
#include "cpu/philox_words.h"

namespace drf_fast::cpu {
namespace {

DRF_INLINE void fill_normals_body(float* __restrict z, const std::uint32_t* __restrict words,
                                  std::int64_t groups) {
  for (std::int64_t i = 0; i < groups; ++i) {
    drf_fast::normal_pair(words[i], words[kBlock + i], z[i], z[kBlock + i]);
    drf_fast::normal_pair(words[2 * kBlock + i], words[3 * kBlock + i], z[2 * kBlock + i],
                          z[3 * kBlock + i]);
  }
}

DRF_ISA_CLONES(fill_normals, fill_normals_body,
               (float* z, const std::uint32_t* words, std::int64_t groups), (z, words, groups))

template <typename T>
DRF_INLINE void add_noise_body(T* __restrict out, const T* __restrict x, const float* __restrict z,
                               double sigma, std::int64_t size) {
  using Wide = decltype(widen(*x));
  const Wide scale = static_cast<Wide>(sigma);
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = narrow<T>(widen(x[i]) + scale * static_cast<Wide>(z[i]));
  }
}

DRF_ISA_TEMPLATE_CLONES(add_noise, add_noise_body,
                        (T * out, const T* x, const float* z, double sigma, std::int64_t size),
                        (out, x, z, sigma, size))

// The same for the logical pixels [begin, end) of a channels_last image: logical NCHW pixel p lies
// at (p % area) * channels + p / area.
template <typename T>
void add_noise_strided(T* out, const T* x, const float* z, std::int64_t begin, std::int64_t end,
                       const NoisyRepeat& call) {
  using Wide = decltype(widen(*x));
  const Wide scale = static_cast<Wide>(call.sigma);
  for (std::int64_t p = begin; p < end;) {
    const std::int64_t channel = p / call.area;
    const std::int64_t stop = std::min(end, (channel + 1) * call.area);
    for (; p < stop; ++p) {
      const std::int64_t at = (p - channel * call.area) * call.channels + channel;
      out[at] = narrow<T>(widen(x[at]) + scale * static_cast<Wide>(z[p - begin]));
    }
  }
}

}  // namespace

template <typename T>
void write_noisy_row(const T* x, T* out, const NoisyRepeat& call, std::int64_t row, Isa isa) {
  alignas(64) std::uint32_t words[4 * kBlock];
  alignas(64) float z[4 * kBlock];
  const auto draw = philox_words_for(isa);
  const auto fill = fill_normals_for(isa);
  const auto add = add_noise_for<T>(isa);
  const std::int64_t pixels = call.channels * call.area;
  const std::int64_t groups = 8 * ((pixels + 31) / 32);
  const std::int64_t image = row / call.num_samples;
  const Stream stream{static_cast<std::uint32_t>(call.sample_offset + row % call.num_samples),
                      static_cast<std::uint32_t>(call.image_ids[image]),
                      static_cast<std::uint32_t>(call.stream), static_cast<std::uint32_t>(call.key),
                      static_cast<std::uint32_t>(call.key >> 32)};
  for (std::int64_t first = 0; first < groups; first += kBlock) {
    const std::int64_t count = std::min(kBlock, groups - first);
    // Rounded up, so that no loop has a remainder; the surplus is not read.
    const std::int64_t made = (count + kGroupsAtOnce - 1) / kGroupsAtOnce * kGroupsAtOnce;
    draw(words, static_cast<std::uint32_t>(first), made, stream);
    fill(z, words, made);
    for (std::int64_t j = 0; j < 4; ++j) {
      const std::int64_t begin = std::min(pixels, j * groups + first);
      const std::int64_t end = std::min(pixels, begin + count);
      if (call.channels_last) {
        add_noise_strided(out, x, z + j * kBlock, begin, end, call);
      } else {
        add(out + begin, x + begin, z + j * kBlock, call.sigma, end - begin);
      }
    }
  }
}

template void write_noisy_row(const float*, float*, const NoisyRepeat&, std::int64_t, Isa);
template void write_noisy_row(const double*, double*, const NoisyRepeat&, std::int64_t, Isa);
template void write_noisy_row(const BFloat16*, BFloat16*, const NoisyRepeat&, std::int64_t, Isa);
template void write_noisy_row(const Float16*, Float16*, const NoisyRepeat&, std::int64_t, Isa);

}  // namespace drf_fast::cpu
