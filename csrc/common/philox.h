// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): four random words from a key and a counter.
#pragma once

#include <cstdint>

#include "portable.h"

namespace drf_fast {

constexpr uint32_t kPhilox0 = 0xD2511F53u, kPhilox1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;      // key increments of a round

struct Words {
  uint32_t w0, w1, w2, w3;
};

// Counter: c0 = group of pixels, c1 = sample index, c2 = image id, c3 = stream.
DRF_HD DRF_INLINE Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                               uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * kPhilox0;
    const uint64_t product1 = static_cast<uint64_t>(c2) * kPhilox1;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {c0, c1, c2, c3};
}

}  // namespace drf_fast
