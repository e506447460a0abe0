// The functions that code compiled with -fsanitize=thread calls at each access to memory. This file
// is compiled without it.
#include <atomic>
#include <cstdint>
#include <vector>

#include "cuda_traffic.h"

namespace {

struct Span {
  std::uintptr_t begin, end;
};

std::vector<Span> spans;
std::atomic<unsigned long long> loaded, stored;

void note(std::atomic<unsigned long long>& into, const void* address, unsigned bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (const Span& span : spans) {
    if (span.begin <= at && at < span.end) into += bytes;
  }
}

}  // namespace

void watch(const void* begin, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(begin);
  spans.push_back({at, at + bytes});
}

Traffic take() {
  spans.clear();
  return {loaded.exchange(0), stored.exchange(0)};
}

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define HOOKS(bytes)                                                                 \
  void __tsan_read##bytes(void* address) { note(loaded, address, bytes); }           \
  void __tsan_write##bytes(void* address) { note(stored, address, bytes); }          \
  void __tsan_unaligned_read##bytes(void* address) { note(loaded, address, bytes); } \
  void __tsan_unaligned_write##bytes(void* address) { note(stored, address, bytes); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* address, unsigned long bytes) { note(loaded, address, bytes); }
void __tsan_write_range(void* address, unsigned long bytes) { note(stored, address, bytes); }

#define ATOMICS(bits, type)                                                                       \
  type __tsan_atomic##bits##_load(const type* address, int) {                                     \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  void __tsan_atomic##bits##_store(type* address, type value, int) {                              \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  type __tsan_atomic##bits##_exchange(type* address, type value, int) {                           \
    return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                 \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_add(type* address, type value, int) {                          \
    note(loaded, address, bits / 8);                                                              \
    note(stored, address, bits / 8);                                                              \
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                                  \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_sub(type* address, type value, int) {                          \
    return __atomic_fetch_sub(address, value, __ATOMIC_SEQ_CST);                                  \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(type* address, type* expected, type value,    \
                                                    int, int) {                                   \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(type* address, type* expected, type value, int, \
                                                  int) {                                          \
    return __atomic_compare_exchange_n(address, expected, value, true, __ATOMIC_SEQ_CST,          \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  type __tsan_atomic##bits##_compare_exchange_val(type* address, type expected, type value, int,  \
                                                  int) {                                          \
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST,               \
                                __ATOMIC_SEQ_CST);                                                \
    return expected;                                                                              \
  }
ATOMICS(8, std::uint8_t)
ATOMICS(16, std::uint16_t)
ATOMICS(32, std::uint32_t)
ATOMICS(64, std::uint64_t)

}  // extern "C"
