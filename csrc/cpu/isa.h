// Loops compiled for several instruction sets, one of which is chosen at run time.
//
// A kernel is an always-inlined body and, through DRF_ISA_CLONES, one function of it for each
// instruction set. DRF_FAST_ISA=baseline|avx2|avx512 in the environment, which
// drf_fast/backends/native/library.py reads when it loads the core, lowers the choice; tests
// compare the bits of all of them.
#pragma once

#include <atomic>
#include <string>

#include "common/portable.h"

namespace drf_fast::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__) && defined(__GNUC__)
#define DRF_TARGET_AVX2 __attribute__((target("avx2")))
#if defined(__clang__)
#define DRF_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"), min_vector_width(512)))
#else
#define DRF_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif

inline Isa best_isa() {
  static const Isa best = [] {
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) return Isa::kAvx512;
    return __builtin_cpu_supports("avx2") ? Isa::kAvx2 : Isa::kBaseline;
  }();
  return best;
}
#else
#define DRF_TARGET_AVX2
#define DRF_TARGET_AVX512
inline Isa best_isa() { return Isa::kBaseline; }
#endif

// The choice of this process. Not read from the environment here: getenv in an operation races with
// setenv in another thread, and may crash.
inline std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> chosen{best_isa()};
  return chosen;
}
inline Isa active_isa() { return chosen_isa().load(std::memory_order_relaxed); }

// Chooses the named one, but never more than the processor has ("": all of it). False for an
// unknown name.
inline bool use_isa(const std::string& name) {
  const Isa best = best_isa();
  Isa wanted = best;
  if (name == "baseline") {
    wanted = Isa::kBaseline;
  } else if (name == "avx2") {
    wanted = Isa::kAvx2;
  } else if (name != "" && name != "avx512") {
    return false;
  }
  chosen_isa().store(wanted < best ? wanted : best, std::memory_order_relaxed);
  return true;
}

inline const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace drf_fast::cpu

// NAME_baseline, NAME_avx2, NAME_avx512 call BODY, and NAME_for(isa) picks one of them.
#define DRF_ISA_CLONES(NAME, BODY, PARAMETERS, ARGUMENTS)             \
  void NAME##_baseline PARAMETERS { BODY ARGUMENTS; }                 \
  DRF_TARGET_AVX2 void NAME##_avx2 PARAMETERS { BODY ARGUMENTS; }     \
  DRF_TARGET_AVX512 void NAME##_avx512 PARAMETERS { BODY ARGUMENTS; } \
  inline auto NAME##_for(Isa isa) {                                   \
    return isa == Isa::kAvx512 ? NAME##_avx512                        \
           : isa == Isa::kAvx2 ? NAME##_avx2                          \
                               : NAME##_baseline;                     \
  }

// The same for a BODY that is a template over the type T of its data: NAME_for<T>(isa).
#define DRF_ISA_TEMPLATE_CLONES(NAME, BODY, PARAMETERS, ARGUMENTS) \
  template <typename T>                                            \
  void NAME##_baseline PARAMETERS {                                \
    BODY ARGUMENTS;                                                \
  }                                                                \
  template <typename T>                                            \
  DRF_TARGET_AVX2 void NAME##_avx2 PARAMETERS {                    \
    BODY ARGUMENTS;                                                \
  }                                                                \
  template <typename T>                                            \
  DRF_TARGET_AVX512 void NAME##_avx512 PARAMETERS {                \
    BODY ARGUMENTS;                                                \
  }                                                                \
  template <typename T>                                            \
  auto NAME##_for(Isa isa) {                                       \
    return isa == Isa::kAvx512 ? NAME##_avx512<T>                  \
           : isa == Isa::kAvx2 ? NAME##_avx2<T>                    \
                               : NAME##_baseline<T>;               \
  }
