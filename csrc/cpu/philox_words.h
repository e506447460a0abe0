// Philox for a block of consecutive groups: the words of drf_fast::philox, one group a lane.
//
// A round is two products of 32 x 32 bits, of which both halves are needed. x86 can multiply the
// lower halves of 64-bit lanes, so a counter word stays in a 64-bit lane through all rounds and the
// garbage in its upper half is ignored: two products, two shifts and xors a round. Compilers do not
// find this in the plain loop (they widen and multiply in 64 bits: 3 times as long), hence the
// intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/philox.h"
#include "cpu/isa.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace drf_fast::cpu {

constexpr std::int64_t kBlock = 256;        // groups; their words fill 4 KiB
constexpr std::int64_t kGroupsAtOnce = 16;  // the groups of a call are a multiple of this

// The key and the counter words of a row, without the group.
struct Stream {
  std::uint32_t sample, image, stream, key_low, key_high;
};

// NAME writes word j of group first + i to words[j kBlock + i]. Even groups are in one vector,
// odd ones in another; a shift and an or interleave them to consecutive words.
#if defined(__x86_64__) && defined(__GNUC__)
#define DRF_PHILOX_WORDS(NAME, TARGET, LANES, VECTOR, MULTIPLY)                                    \
  TARGET inline void NAME(std::uint32_t* words, std::uint32_t first, std::int64_t groups,          \
                          Stream s) {                                                              \
    typedef std::uint64_t Lanes __attribute__((vector_size(8 * LANES)));                           \
    const Lanes zero{};                                                                            \
    for (std::int64_t i = 0; i < groups; i += 2 * LANES) {                                         \
      Lanes made[2][4];                                                                            \
      for (std::uint32_t odd = 0; odd < 2; ++odd) {                                                \
        Lanes c0, c1 = zero + s.sample, c2 = zero + s.image, c3 = zero + s.stream;                 \
        for (std::uint32_t lane = 0; lane < LANES; ++lane) {                                       \
          c0[lane] = first + static_cast<std::uint32_t>(i) + 2 * lane + odd;                       \
        }                                                                                          \
        std::uint32_t key_low = s.key_low, key_high = s.key_high;                                  \
        for (int round = 0; round < 10; ++round) {                                                 \
          const Lanes product0 = (Lanes)MULTIPLY((VECTOR)c0, (VECTOR)(zero + drf_fast::kPhilox0)); \
          const Lanes product1 = (Lanes)MULTIPLY((VECTOR)c2, (VECTOR)(zero + drf_fast::kPhilox1)); \
          c0 = (product1 >> 32) ^ c1 ^ (zero + key_low);                                           \
          c2 = (product0 >> 32) ^ c3 ^ (zero + key_high);                                          \
          c1 = product1;                                                                           \
          c3 = product0;                                                                           \
          key_low += drf_fast::kWeyl0;                                                             \
          key_high += drf_fast::kWeyl1;                                                            \
        }                                                                                          \
        made[odd][0] = c0, made[odd][1] = c1, made[odd][2] = c2, made[odd][3] = c3;                \
      }                                                                                            \
      for (int j = 0; j < 4; ++j) {                                                                \
        const Lanes joined = (made[0][j] & 0xffffffffu) | made[1][j] << 32;                        \
        std::memcpy(words + j * kBlock + i, &joined, sizeof joined);                               \
      }                                                                                            \
    }                                                                                              \
  }

// Zero-masked with a full mask: GCC 12 warns in its own header for the unmasked form.
#define DRF_MULTIPLY_512(A, B) _mm512_maskz_mul_epu32(0xff, A, B)

DRF_PHILOX_WORDS(philox_words_baseline, , 2, __m128i, _mm_mul_epu32)
DRF_PHILOX_WORDS(philox_words_avx2, DRF_TARGET_AVX2, 4, __m256i, _mm256_mul_epu32)
DRF_PHILOX_WORDS(philox_words_avx512, DRF_TARGET_AVX512, 8, __m512i, DRF_MULTIPLY_512)

inline auto philox_words_for(Isa isa) {
  return isa == Isa::kAvx512 ? philox_words_avx512
         : isa == Isa::kAvx2 ? philox_words_avx2
                             : philox_words_baseline;
}
#else
inline void philox_words(std::uint32_t* words, std::uint32_t first, std::int64_t groups, Stream s) {
  for (std::int64_t i = 0; i < groups; ++i) {
    const drf_fast::Words w = drf_fast::philox(first + static_cast<std::uint32_t>(i), s.sample,
                                               s.image, s.stream, s.key_low, s.key_high);
    words[i] = w.w0, words[kBlock + i] = w.w1;
    words[2 * kBlock + i] = w.w2, words[3 * kBlock + i] = w.w3;
  }
}

inline auto philox_words_for(Isa) { return philox_words; }
#endif

}  // namespace drf_fast::cpu
