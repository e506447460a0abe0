// The kernels of both bounds over the cases on standard input. A case: blocks, threads and size as
// int64, alpha and sigma as double, int64 successes and trials. Its result: the lower bounds, then
// the radii. Blocks run one after another, since they share one __shared__ variable here.
#include "cuda_on_cpu.h"
// after it, since they use its macros
#include "cuda/certified_radius_kernel.cuh"
#include "cuda/clopper_pearson_lower_kernel.cuh"
#include "pipe.h"

int main() {
  for (std::int64_t cases = read<std::int64_t>(1)[0]; cases > 0; --cases) {
    const std::vector<std::int64_t> sizes = read<std::int64_t>(3);
    const unsigned blocks = static_cast<unsigned>(sizes[0]);
    const unsigned threads = static_cast<unsigned>(sizes[1]);
    const std::vector<double> scalars = read<double>(2);
    const double *alpha = &scalars[0], *sigma = &scalars[1];
    const auto successes = read<std::int64_t>(sizes[2]), trials = read<std::int64_t>(sizes[2]);
    std::vector<double> out(successes.size(), NAN);
    cuda_on_cpu::run(false, blocks, threads, drf_fast::cuda::clopper_pearson_lower_kernel,
                     successes.data(), trials.data(), alpha, out.data(), sizes[2]);
    write(out);
    out.assign(out.size(), NAN);
    cuda_on_cpu::run(false, blocks, threads, drf_fast::cuda::certified_radius_kernel,
                     successes.data(), trials.data(), sigma, alpha, out.data(), sizes[2]);
    write(out);
  }
}
