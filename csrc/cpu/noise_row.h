// One noisy row: what noisy_repeat writes, and adversary_step once it has moved an image.
#pragma once

#include <cstdint>

#include "cpu/floats.h"
#include "cpu/isa.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {

// Row number `row` of the noisy copies of images: out[p] = x[p] + sigma z[p], x being the image
// row / num_samples and out the row itself. Defined for the four dtypes.
template <typename T>
void write_noisy_row(const T* x, T* out, const NoisyRepeat& call, std::int64_t row, Isa isa);

}  // namespace drf_fast::cpu
