// Runs the CUDA kernels' own source on the CPU, see tests/cuda_on_cpu, and prints the bytes that
// each loads from and stores to the arrays it is given. Compiled with -fsanitize=thread, whose
// calls at each access cuda_traffic_hooks.cpp answers in place of ThreadSanitizer.
#include "cuda_on_cpu.h"
// after it, because they use its words
#include <tuple>

#include "cuda/certified_radius_kernel.cuh"
#include "cuda/clopper_pearson_lower_kernel.cuh"
#include "cuda/vote_kernel.cuh"
#include "cuda_traffic.h"

namespace {

using std::int64_t;

// Counts while kernel(arguments...) runs on 64 threads; the arrays are what is watched.
template <typename Kernel, typename... Arrays, typename... Arguments>
void print(const char* name, int64_t rows, int64_t classes, const std::tuple<Arrays&...>& arrays,
           Kernel kernel, Arguments... arguments) {
  std::apply([](auto&... one) { (watch(one.data(), one.size() * sizeof(one[0])), ...); }, arrays);
  cuda_on_cpu::run(false, 1, 64, kernel, arguments...);
  const Traffic traffic = take();
  std::printf("%s %lld %lld %llu %llu\n", name, static_cast<long long>(rows),
              static_cast<long long>(classes), traffic.loaded, traffic.stored);
}

void vote(int64_t rows, int64_t classes) {
  std::vector<float> logits(rows * classes);
  for (int64_t row = 0; row < rows; ++row) logits[row * classes + (row % 16 == 0)] = 1.0F;
  std::vector<unsigned long long> counts(classes);
  const auto kernel = classes <= 32 ? drf_fast::cuda::vote_kernel<4, float>
                                    : drf_fast::cuda::vote_kernel<32, float>;
  print("vote", rows, classes, std::tie(logits, counts), kernel, logits.data(), rows, classes, rows,
        counts.data());
}

void bounds(int64_t size) {
  const double alpha = 0.001, sigma = 0.5;
  std::vector<int64_t> successes(size, 990), trials(size, 1000);
  std::vector<double> out(size);
  const auto arrays = std::tie(successes, trials, out);
  print("clopper_pearson_lower", size, 0, arrays, drf_fast::cuda::clopper_pearson_lower_kernel,
        successes.data(), trials.data(), &alpha, out.data(), size);
  print("certified_radius", size, 0, arrays, drf_fast::cuda::certified_radius_kernel,
        successes.data(), trials.data(), &sigma, &alpha, out.data(), size);
}

}  // namespace

int main() {
  vote(4096, 10);
  vote(4096, 100);
  vote(512, 1000);
  vote(64, 100000);
  bounds(512);
}
