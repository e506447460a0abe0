// relu(max_pool2d(x, 2)) in one pass, its backward, and, where x is a convolution of a one-channel
// image, the gradient of that image directly from the pooled gradient. Only the position of each
// maximum of x is kept. All tensors are in channels_last order.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {
namespace {

constexpr std::int64_t kChunk = 1024;

// Copies one position of `columns` adjacent windows, `channels` values each, to contiguous memory.
template <typename T, typename Wide>
DRF_INLINE void gather(const T* x, Wide* __restrict out, std::int64_t columns, std::int64_t apart,
                       std::int64_t channels) {
  for (std::int64_t column = 0; column < columns; ++column) {
    for (std::int64_t c = 0; c < channels; ++c) {
      out[column * channels + c] = widen(x[2 * column * apart + c]);
    }
  }
}

// One row of windows: two rows of x, `wide` columns, to one row of out. An index is 0..3, the
// first maximum (or the last NaN) in reading order, or 4 where ReLU lets no gradient through.
template <typename T>
DRF_INLINE void pool_body(const T* x, T* __restrict out, std::uint8_t* __restrict index,
                          std::int64_t wide, std::int64_t channels) {
  using Wide = decltype(widen(*x));
  Wide values[4][kChunk], best[kChunk];
  std::int32_t which[kChunk];
  const std::int64_t together = std::max<std::int64_t>(1, kChunk / channels);  // columns
  for (std::int64_t first = 0; first < wide / 2; first += together) {
    const std::int64_t columns = std::min(together, wide / 2 - first);
    for (std::int64_t channel = 0; channel < channels; channel += kChunk) {
      const std::int64_t some = std::min(kChunk, channels - channel), size = columns * some;
      for (int place = 0; place < 4; ++place) {
        const T* from = x + (place / 2 * wide + 2 * first + place % 2) * channels + channel;
        gather(from, values[place], columns, channels, some);
      }
      DRF_SIMD
      for (std::int64_t i = 0; i < size; ++i) {
        Wide top = values[0][i];
        std::int32_t at = 0;
        for (int place = 1; place < 4; ++place) {
          const Wide value = values[place][i];
          const bool larger = (value > top) | (value != value);
          at = larger ? place : at;
          top = larger ? value : top;
        }
        const bool none = top <= 0;
        best[i] = none ? Wide(0) : top;
        which[i] = none ? 4 : at;
      }
      // Columns are taken together only with all of their channels, so the results are contiguous.
      const std::int64_t to = first * channels + channel;
      for (std::int64_t i = 0; i < size; ++i) out[to + i] = narrow<T>(best[i]);
      if (index == nullptr) continue;
      for (std::int64_t i = 0; i < size; ++i) index[to + i] = static_cast<std::uint8_t>(which[i]);
    }
  }
}

DRF_ISA_TEMPLATE_CLONES(pool, pool_body,
                        (const T* x, T* out, std::uint8_t* index, std::int64_t wide,
                         std::int64_t channels),
                        (x, out, index, wide, channels))

// An unsigned integer as wide as T, for its bits and for its index: equal vector lanes for both.
template <std::size_t kSize>
struct Bits;
template <>
struct Bits<2> {
  using Type = std::uint16_t;
};
template <>
struct Bits<4> {
  using Type = std::uint32_t;
};
template <>
struct Bits<8> {
  using Type = std::uint64_t;
};

// The backward of one row of windows; each element of the two rows is written once.
template <typename T>
DRF_INLINE void unpool_body(const T* grad, const std::uint8_t* __restrict index, T* out,
                            std::int64_t wide, std::int64_t channels) {
  using Word = typename Bits<sizeof(T)>::Type;
  Word words[kChunk], places[kChunk];
  const std::int64_t size = wide / 2 * channels;
  for (std::int64_t first = 0; first < size; first += kChunk) {
    const std::int64_t some = std::min(kChunk, size - first);
    std::memcpy(words, grad + first, static_cast<std::size_t>(some) * sizeof(T));
    for (std::int64_t i = 0; i < some; ++i) places[i] = index[first + i];
    for (std::int64_t at = 0; at < some;) {  // the channels of one window, or the rest of them
      const std::int64_t column = (first + at) / channels, channel = (first + at) % channels;
      const std::int64_t count = std::min(channels - channel, some - at);
      for (Word place = 0; place < 4; ++place) {
        Word kept[kChunk];
        T* to = out + (place / 2 * wide + 2 * column + place % 2) * channels + channel;
        for (std::int64_t c = 0; c < count; ++c) {
          kept[c] = places[at + c] == place ? words[at + c] : Word(0);
        }
        std::memcpy(to, kept, static_cast<std::size_t>(count) * sizeof(T));
      }
      at += count;
    }
  }
}

DRF_ISA_TEMPLATE_CLONES(unpool, unpool_body,
                        (const T* grad, const std::uint8_t* index, T* out, std::int64_t wide,
                         std::int64_t channels),
                        (grad, index, out, wide, channels))

constexpr int kRow = 8;  // floats of a row of a tile: a kernel of up to 7, shifted by up to 1
constexpr int kLanes = 16;

#if defined(__GNUC__)
// The compiler keeps its own vector type in registers; arrays it would spill to the stack.
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
#else
struct Lanes {
  float value[kLanes];
  Lanes operator*(float factor) const {
    Lanes product;
    for (int i = 0; i < kLanes; ++i) product.value[i] = value[i] * factor;
    return product;
  }
  Lanes& operator+=(const Lanes& other) {
    for (int i = 0; i < kLanes; ++i) value[i] += other.value[i];
    return *this;
  }
};
#endif

// Kernels (C, k, k) as float tiles of k + 1 rows, five for each channel: the kernel shifted to each
// of the four positions of a window, and zeros for no position.
template <typename T>
std::vector<float> tiles_of(const T* weight, std::int64_t channels, int k) {
  const int size = (k + 1) * kRow;
  std::vector<float> tiles(static_cast<std::size_t>(channels * 5 * size), 0.0f);
  for (std::int64_t c = 0; c < channels; ++c) {
    for (int place = 0; place < 4; ++place) {
      float* tile = tiles.data() + (c * 5 + place) * size;
      for (int at = 0; at < k * k; ++at) {
        tile[(at / k + place / 2) * kRow + at % k + place % 2] = widen(weight[c * k * k + at]);
      }
    }
  }
  return tiles;
}

// Adds the contribution of one row of windows to `image`, of `stride` floats a row. Even and odd
// channels have separate sums: two independent chains of additions hide their latency.
template <typename T, int kTile>
DRF_INLINE void spread_row(const T* grad, const std::uint8_t* index, const float* tiles,
                           float* image, std::int64_t stride, std::int64_t columns,
                           std::int64_t channels) {
  constexpr int kSize = kTile * kLanes;
  for (std::int64_t column = 0; column < columns; ++column) {
    const T* g = grad + column * channels;
    const std::uint8_t* place = index + column * channels;
    Lanes even[kTile] = {}, odd[kTile] = {};
    const auto add = [&](Lanes* sums, std::int64_t c) {
      // The factor is 0 as well as the tile: an infinite gradient, as that of a root at 0, times 0
      // would be NaN. By a mask of bits: a branch here would be mispredicted every other time.
      const std::uint32_t kept = 0u - static_cast<std::uint32_t>(place[c] < 4);
      const float factor = float_of_bits(bits_of_float(static_cast<float>(widen(g[c]))) & kept);
      const float* tile = tiles + (c * 5 + (place[c] < 4 ? place[c] : 4)) * kSize;
      for (int i = 0; i < kTile; ++i) {
        Lanes part;
        std::memcpy(&part, tile + i * kLanes, sizeof part);
        sums[i] += part * factor;
      }
    };
    std::int64_t c = 0;
    for (; c + 1 < channels; c += 2) {
      add(even, c);
      add(odd, c + 1);
    }
    if (c < channels) add(even, c);
    for (int i = 0; i < kTile; ++i) {
      even[i] += odd[i];
      float sums[kLanes];
      std::memcpy(sums, &even[i], sizeof sums);
      for (int half = 0; half < 2; ++half) {
        float* to = image + (2 * i + half) * stride + 2 * column;
        for (int j = 0; j < kRow; ++j) to[j] += sums[half * kRow + j];
      }
    }
  }
}

template <typename T>
DRF_INLINE void spread_body(const T* grad, const std::uint8_t* index, const float* tiles,
                            float* image, std::int64_t stride, std::int64_t columns,
                            std::int64_t channels, int k) {
  if (k == 3) spread_row<T, 2>(grad, index, tiles, image, stride, columns, channels);
  if (k == 5) spread_row<T, 3>(grad, index, tiles, image, stride, columns, channels);
  if (k == 7) spread_row<T, 4>(grad, index, tiles, image, stride, columns, channels);
}

DRF_ISA_TEMPLATE_CLONES(spread, spread_body,
                        (const T* grad, const std::uint8_t* index, const float* tiles, float* image,
                         std::int64_t stride, std::int64_t columns, std::int64_t channels, int k),
                        (grad, index, tiles, image, stride, columns, channels, k))

}  // namespace

void max_pool_relu(const void* x, void* out, std::uint8_t* index, Dtype dtype, const Pooling& call,
                   [[maybe_unused]] int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const auto row = pool_for<T>(active_isa());
    const std::int64_t size = call.columns * call.channels;  // of a row of out
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (std::int64_t at = 0; at < call.batch * call.rows; ++at) {
      row(static_cast<const T*>(x) + 4 * at * size, static_cast<T*>(out) + at * size,
          index == nullptr ? nullptr : index + at * size, 2 * call.columns, call.channels);
    }
  });
}

void max_pool_relu_backward(const void* grad, const std::uint8_t* index, void* out, Dtype dtype,
                            const Pooling& call, [[maybe_unused]] int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const auto row = unpool_for<T>(active_isa());
    const std::int64_t size = call.columns * call.channels;
    expect_writes(out, sizeof(T) * static_cast<std::size_t>(4 * call.batch * call.rows * size));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (std::int64_t at = 0; at < call.batch * call.rows; ++at) {
      row(static_cast<const T*>(grad) + at * size, index + at * size,
          static_cast<T*>(out) + 4 * at * size, 2 * call.columns, call.channels);
    }
  });
}

void pooled_image_gradient(const void* grad, const std::uint8_t* index, const void* weight,
                           void* out, Dtype dtype, const Pooling& call, int k, int threads) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const auto row = spread_for<T>(active_isa());
    const auto tiles = tiles_of(static_cast<const T*>(weight), call.channels, k);
    const std::int64_t size = call.columns * call.channels;
    const std::int64_t high = 2 * call.rows + k - 1, wide = 2 * call.columns + k - 1;
    const std::int64_t stride = wide + kRow;  // a tile may reach beyond the image
    const auto write_image = [&](std::int64_t image, float* sums) {
      std::fill(sums, sums + high * stride, 0.0f);
      for (std::int64_t i = 0; i < call.rows; ++i) {
        const std::int64_t at = (image * call.rows + i) * size;
        row(static_cast<const T*>(grad) + at, index + at, tiles.data(), sums + 2 * i * stride,
            stride, call.columns, call.channels, k);
      }
      T* to = static_cast<T*>(out) + image * high * wide;
      for (std::int64_t i = 0; i < high; ++i) {
        for (std::int64_t j = 0; j < wide; ++j) {
          to[i * wide + j] = narrow<T>(static_cast<decltype(widen(T{}))>(sums[i * stride + j]));
        }
      }
    };
    // Each thread gets one part, of consecutive images, and memory for the sums of one. It is
    // allocated out here, since no exception may leave a parallel region.
    const std::int64_t parts =
        std::max<std::int64_t>(1, std::min<std::int64_t>(threads, call.batch));
    std::vector<float> memory(static_cast<std::size_t>(parts * high * stride));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t end = call.batch * (part + 1) / parts;
      for (std::int64_t image = call.batch * part / parts; image < end; ++image) {
        write_image(image, memory.data() + part * high * stride);
      }
    }
  });
}

}  // namespace drf_fast::cpu
