// Large outputs are newly mapped memory: the first write to each page faults, and the system zeroes
// it. With pages of 4 KiB that takes several times as long as writing; with huge pages, less.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace drf_fast::cpu {

// Smaller blocks come from the allocator's heap, whose pages are mapped already.
constexpr std::size_t kLarge = std::size_t{4} << 20;

// Asks for huge pages where an output of `bytes` bytes is about to be written. It is advice
// (madvise): it changes nothing for pages already mapped, or on systems without huge pages.
inline void expect_writes(void* memory, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (memory == nullptr || bytes < kLarge) return;
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage;
  const std::uintptr_t end = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace drf_fast::cpu
