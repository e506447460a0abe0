// noisy_levels on the CPU: float32(u + R)/255 for m copies of each 8-bit image.
//
// As in noise_row.cpp a row is made in blocks of counter groups, in buffers that stay in the L1
// cache: words, levels, pixels. A level is one look-up in a guide. Vector code looks up the high
// words alone, 31 bits of V, which decide all but a few in 2^22: those where V is so small that its
// bucket depends on the low word, or its high word equals that of the threshold. A vector with such
// a lane is left to the scalar code.
#include <algorithm>
#include <cstdint>

#include "common/levels.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/philox_words.h"

namespace drf_fast::cpu {
namespace {

DRF_INLINE void find_levels_scalar(std::int32_t* levels, const std::uint32_t* high,
                                   const std::uint32_t* low, std::int64_t groups,
                                   const drf_fast::Guide& guide) {
  for (std::int64_t i = 0; i < groups; ++i) {
    levels[i] = drf_fast::level_of_word(high[i], low[i], guide);
  }
}

// find_levels_* write the levels of `groups` words, a multiple of the lanes of a vector.
#if defined(__x86_64__) && defined(__GNUC__)
void find_levels_baseline(std::int32_t* levels, const std::uint32_t* high, const std::uint32_t* low,
                          std::int64_t groups, const drf_fast::Guide& guide) {
  find_levels_scalar(levels, high, low, groups, guide);
}

DRF_TARGET_AVX2 void find_levels_avx2(std::int32_t* levels, const std::uint32_t* high,
                                      const std::uint32_t* low, std::int64_t groups,
                                      const drf_fast::Guide& guide) {
  const __m128i cut = _mm_cvtsi32_si128(guide.bits + 1), shift = _mm_cvtsi32_si128(23 - guide.bits);
  const __m256i origin = _mm256_set1_epi32((127 - 32) << guide.bits);
  const __m256i least = _mm256_set1_epi32(1 << guide.bits);
  const int* thresholds = reinterpret_cast<const int*>(guide.rows) + 1;  // their high words
  const int* counts = reinterpret_cast<const int*>(guide.rows) + 2;
  for (std::int64_t i = 0; i < groups; i += 8) {
    const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(high + i));
    const __m256i upper = _mm256_srai_epi32(word, 31), value = _mm256_xor_si256(word, upper);
    const __m256i kept = _mm256_andnot_si256(_mm256_srl_epi32(value, cut), value);
    const __m256i image = _mm256_castps_si256(_mm256_cvtepi32_ps(kept));
    const __m256i small = _mm256_cmpgt_epi32(least, value);
    // A row of the guide is two units of 8 bytes, the scale of the gathers. Small values read row 0
    // instead of one out of bounds.
    const __m256i bucket = _mm256_sub_epi32(_mm256_srl_epi32(image, shift), origin);
    const __m256i row = _mm256_slli_epi32(_mm256_andnot_si256(small, bucket), 1);
    const __m256i threshold = _mm256_i32gather_epi32(thresholds, row, 8);
    const __m256i count = _mm256_i32gather_epi32(counts, row, 8);
    const __m256i open = _mm256_or_si256(small, _mm256_cmpeq_epi32(threshold, value));
    if (__builtin_expect(!_mm256_testz_si256(open, open), 0)) {
      find_levels_scalar(levels + i, high + i, low + i, 8, guide);
      continue;
    }
    const __m256i beyond =
        _mm256_blendv_epi8(_mm256_and_si256(count, _mm256_set1_epi32(0xffff)),
                           _mm256_srli_epi32(count, 16), _mm256_cmpgt_epi32(threshold, value));
    const __m256i level = _mm256_sub_epi32(upper, _mm256_xor_si256(beyond, upper));  // - beyond
    _mm256_store_si256(reinterpret_cast<__m256i*>(levels + i), level);
  }
}

DRF_TARGET_AVX512 void find_levels_avx512(std::int32_t* levels, const std::uint32_t* high,
                                          const std::uint32_t* low, std::int64_t groups,
                                          const drf_fast::Guide& guide) {
  const __m128i cut = _mm_cvtsi32_si128(guide.bits + 1), shift = _mm_cvtsi32_si128(23 - guide.bits);
  const __m512i zero = _mm512_setzero_si512();
  const __m512i origin = _mm512_set1_epi32((127 - 32) << guide.bits);
  const __m512i least = _mm512_set1_epi32(1 << guide.bits);
  const int* thresholds = reinterpret_cast<const int*>(guide.rows) + 1;
  const int* counts = reinterpret_cast<const int*>(guide.rows) + 2;
  constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns in its own header for the unmasked forms
  for (std::int64_t i = 0; i < groups; i += 16) {
    const __m512i word = _mm512_maskz_load_epi32(kAll, high + i);
    const __m512i upper = _mm512_maskz_srai_epi32(kAll, word, 31);
    const __m512i value = _mm512_xor_si512(word, upper);
    const __m512i kept =
        _mm512_maskz_andnot_epi32(kAll, _mm512_maskz_srl_epi32(kAll, value, cut), value);
    const __m512i image = _mm512_castps_si512(_mm512_maskz_cvtepi32_ps(kAll, kept));
    const __mmask16 small = _mm512_cmpgt_epi32_mask(least, value);
    const __m512i bucket = _mm512_maskz_sub_epi32(
        static_cast<__mmask16>(~small), _mm512_maskz_srl_epi32(kAll, image, shift), origin);
    const __m512i row = _mm512_maskz_slli_epi32(kAll, bucket, 1);
    const __m512i threshold = _mm512_mask_i32gather_epi32(zero, kAll, row, thresholds, 8);
    const __m512i count = _mm512_mask_i32gather_epi32(zero, kAll, row, counts, 8);
    if (__builtin_expect(small | _mm512_cmpeq_epi32_mask(threshold, value), 0)) {
      find_levels_scalar(levels + i, high + i, low + i, 16, guide);
      continue;
    }
    const __m512i above = _mm512_and_si512(count, _mm512_set1_epi32(0xffff));
    const __m512i beyond =
        _mm512_mask_srli_epi32(above, _mm512_cmpgt_epi32_mask(threshold, value), count, 16);
    const __m512i level = _mm512_maskz_sub_epi32(kAll, upper, _mm512_xor_si512(beyond, upper));
    _mm512_mask_store_epi32(levels + i, kAll, level);
  }
}

auto find_levels_for(Isa isa) {
  return isa == Isa::kAvx512 ? find_levels_avx512
         : isa == Isa::kAvx2 ? find_levels_avx2
                             : find_levels_baseline;
}
#else
auto find_levels_for(Isa) { return find_levels_scalar; }
#endif

template <typename T>
DRF_INLINE void add_levels_body(T* __restrict out, const std::uint8_t* __restrict u,
                                const std::int32_t* __restrict levels, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = narrow<T>(static_cast<float>(u[i] + levels[i]) / 255.0f);
  }
}

DRF_ISA_TEMPLATE_CLONES(add_levels, add_levels_body,
                        (T * out, const std::uint8_t* u, const std::int32_t* levels,
                         std::int64_t size),
                        (out, u, levels, size))

// The same for the logical pixels [begin, end) of a channels_last image, see noise_row.cpp.
template <typename T>
void add_levels_strided(T* out, const std::uint8_t* u, const std::int32_t* levels,
                        std::int64_t begin, std::int64_t end, const NoisyRepeat& call) {
  for (std::int64_t p = begin; p < end;) {
    const std::int64_t channel = p / call.area;
    const std::int64_t stop = std::min(end, (channel + 1) * call.area);
    for (; p < stop; ++p) {
      const std::int64_t at = (p - channel * call.area) * call.channels + channel;
      out[at] = narrow<T>(static_cast<float>(u[at] + levels[p - begin]) / 255.0f);
    }
  }
}

template <typename T>
void write_level_row(const std::uint8_t* u, T* out, const NoisyRepeat& call,
                     const drf_fast::Guide& guide, std::int64_t row, Isa isa) {
  alignas(64) std::uint32_t words[4 * kBlock];
  alignas(64) std::int32_t levels[kBlock];
  const auto draw = philox_words_for(isa);
  const auto find = find_levels_for(isa);
  const auto add = add_levels_for<T>(isa);
  const std::int64_t pixels = call.channels * call.area;
  const std::int64_t groups = 8 * ((pixels + 31) / 32);
  const std::int64_t image = row / call.num_samples;
  Stream stream{static_cast<std::uint32_t>(call.sample_offset + row % call.num_samples),
                static_cast<std::uint32_t>(call.image_ids[image]), 0,
                static_cast<std::uint32_t>(call.key), static_cast<std::uint32_t>(call.key >> 32)};
  for (std::int64_t first = 0; first < groups; first += kBlock) {
    const std::int64_t count = std::min(kBlock, groups - first);
    const std::int64_t made = (count + kGroupsAtOnce - 1) / kGroupsAtOnce * kGroupsAtOnce;
    for (std::int64_t j = 0; j < 4; ++j) {
      const std::int64_t begin = j * groups + first, end = std::min(pixels, begin + count);
      if (begin >= end) break;
      if (j % 2 == 0) {
        stream.stream = static_cast<std::uint32_t>(call.stream + 4 * (1 + j / 2));
        draw(words, static_cast<std::uint32_t>(first), made, stream);
      }
      const std::uint32_t* high = words + (j % 2 == 0 ? 0 : 2 * kBlock);
      find(levels, high, high + kBlock, made, guide);
      if (call.channels_last) {
        add_levels_strided(out, u, levels, begin, end, call);
      } else {
        add(out + begin, u + begin, levels, end - begin);
      }
    }
  }
}

}  // namespace

void noisy_levels(const std::uint8_t* u, void* out, Dtype dtype, const NoisyRepeat& call,
                  const std::int64_t* guide, int bits, [[maybe_unused]] int threads) {
  static_assert(sizeof(drf_fast::GuideRow) == 2 * sizeof(std::int64_t));
  const Isa isa = active_isa();
  const std::int64_t pixels = call.channels * call.area;
  const drf_fast::Guide table{reinterpret_cast<const drf_fast::GuideRow*>(guide), bits};
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    expect_writes(out,
                  sizeof(T) * static_cast<std::size_t>(call.batch * call.num_samples * pixels));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (std::int64_t row = 0; row < call.batch * call.num_samples; ++row) {
      write_level_row(u + row / call.num_samples * pixels, static_cast<T*>(out) + row * pixels,
                      call, table, row, isa);
    }
  });
}

}  // namespace drf_fast::cpu
