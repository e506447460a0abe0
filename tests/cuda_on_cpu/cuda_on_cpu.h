// Runs CUDA kernels on the CPU, for tests: each CUDA thread is a std::thread.
//
// It defines the CUDA keywords and functions that our kernels use, so that their unchanged source
// runs without a GPU, also under ThreadSanitizer. Included before the kernel.
//
// CUDA allows every schedule of the threads that the operating system can produce, so a failure
// here is a bug of the kernel. Not the reverse: a shuffle here also orders its lanes' memory
// accesses, which CUDA does not guarantee, and all threads must exist at once.
//
// The environment variable PLANT=race makes atomicAdd a plain addition, PLANT=no_barrier makes
// __syncthreads a no-op: planted faults that ThreadSanitizer must report.
#pragma once

#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#define DRF_FAST_CUDA_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one for all blocks, which therefore must not run together

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;

struct Dim3 {
  unsigned x = 0, y = 0, z = 0;
};

inline bool planted(const char* name) {
  const char* value = std::getenv("PLANT");
  return value != nullptr && std::strcmp(value, name) == 0;
}
inline const bool kRace = planted("race"), kNoBarrier = planted("no_barrier");

[[noreturn]] inline void die(const char* sentence) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", sentence);
  std::exit(3);
}

// The lanes of one mask, which synchronise in a __shfl_xor_sync or __any_sync.
class Group {
 public:
  explicit Group(unsigned mask) : mask_(mask), barrier_(std::popcount(mask)) {}

  // The values of all lanes, once all have arrived. Two buffers alternate: before a lane writes one
  // of them again, it has synchronised with the others after they read it.
  const std::uint64_t* exchange(unsigned lane, std::uint64_t value) {
    std::uint64_t* values = values_[turn_[lane]];
    turn_[lane] ^= 1;
    values[lane] = value;
    barrier_.arrive_and_wait();
    return values;
  }
  unsigned mask() const { return mask_; }

 private:
  unsigned mask_;
  std::barrier<> barrier_;
  std::uint64_t values_[2][kWarp] = {};
  unsigned char turn_[kWarp] = {};
};

class Warp {
 public:
  Group& group(unsigned mask) {
    const std::lock_guard lock(mutex_);
    return groups_.try_emplace(mask, mask).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<unsigned, Group> groups_;
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads), warps((threads + kWarp - 1) / kWarp) {}
  std::barrier<> barrier;
  std::vector<Warp> warps;
};

// A thread's block and groups. Groups are cached, since a look-up in the warp takes a lock, which
// would hide races from ThreadSanitizer.
inline thread_local Block* this_block = nullptr;
inline thread_local std::map<unsigned, Group*> this_groups;

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

inline unsigned this_lane() { return threadIdx.x % kWarp; }

inline Group& this_group(unsigned mask) {
  if ((mask >> this_lane() & 1) == 0) die("a lane is not in the mask that it synchronises");
  Group*& group = this_groups[mask];
  if (group == nullptr) group = &this_block->warps[threadIdx.x / kWarp].group(mask);
  return *group;
}

// Runs kernel(arguments...) on `blocks` blocks, concurrently if `together`, else in sequence.
template <typename... Parameters, typename... Arguments>
void run(bool together, unsigned blocks, unsigned threads, void (*kernel)(Parameters...),
         Arguments... arguments) {
  std::deque<Block> made;
  std::vector<std::thread> running;
  const auto finish = [&] {
    for (std::thread& thread : running) thread.join();
    running.clear();
    made.clear();
  };
  for (unsigned b = 0; b < blocks; ++b) {
    Block* block = &made.emplace_back(threads);
    for (unsigned t = 0; t < threads; ++t) {
      running.emplace_back([=] {
        this_block = block;
        threadIdx = {t}, blockIdx = {b}, blockDim = {threads, 1, 1}, gridDim = {blocks, 1, 1};
        kernel(arguments...);
      });
    }
    if (!together) finish();
  }
  finish();
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
  if (!cuda_on_cpu::kNoBarrier) cuda_on_cpu::this_block->barrier.arrive_and_wait();
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const unsigned source = cuda_on_cpu::this_lane() ^ static_cast<unsigned>(distance);
  if ((mask >> source & 1) == 0) cuda_on_cpu::die("a lane reads from one outside its mask");
  bits = cuda_on_cpu::this_group(mask).exchange(cuda_on_cpu::this_lane(), bits)[source];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int __any_sync(unsigned mask, int predicate) {
  const std::uint64_t* all =
      cuda_on_cpu::this_group(mask).exchange(cuda_on_cpu::this_lane(), predicate != 0);
  for (unsigned lane = 0; lane < cuda_on_cpu::kWarp; ++lane) {
    if ((mask >> lane & 1) != 0 && all[lane] != 0) return 1;
  }
  return 0;
}

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  if (!cuda_on_cpu::kRace) {
    return std::atomic_ref(*address).fetch_add(value, std::memory_order_relaxed);
  }
  const unsigned long long before = *address;
  *address = before + value;
  return before;
}
