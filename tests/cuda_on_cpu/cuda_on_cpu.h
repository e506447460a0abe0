// Runs CUDA kernels on the CPU, for tests: each CUDA thread is a std::thread.
//
// It gives a meaning to the words that our kernels use, so that the very source of a kernel runs
// where there is no GPU, also under ThreadSanitizer. Included before the kernel.
//
// Every schedule of the threads that the operating system can produce is one that CUDA allows, so a
// failure here is a failure there. Not the reverse: a shuffle here also orders the memory of its
// lanes, which CUDA does not promise, and all threads must fit the machine at once.
//
// The environment variable PLANT=race makes atomicAdd a plain addition, PLANT=no_barrier makes
// __syncthreads nothing: what ThreadSanitizer must find, in the program in which it finds nothing.
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

// The lanes of one mask: those that meet in a __shfl_xor_sync or __any_sync.
class Group {
 public:
  explicit Group(unsigned mask) : mask_(mask), barrier_(std::popcount(mask)) {}

  // Each lane's value, once all of them are there. Two buffers take turns: a lane that writes one
  // again has met the others since they read it.
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

// What a thread knows of its place. Its groups are remembered here, since asking the warp takes a
// lock, and a lock would hide races from ThreadSanitizer.
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

// kernel(arguments...) on all threads of `blocks` blocks; `together`, or one block after another.
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
