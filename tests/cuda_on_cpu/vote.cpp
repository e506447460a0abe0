// The kernel of vote over the cases on standard input. A case: dtype (0 to 3), lanes, blocks,
// threads, rows, classes and images as int64, the int64 counts so far, the logits. Its result: the
// counts. Blocks run together, so that races between them show. PLANT=overrun lets the kernel read
// one row too many, which AddressSanitizer must report.
#include "cuda_on_cpu.h"
// after it, since it uses its macros
#include "cuda/vote_kernel.cuh"
#include "pipe.h"

using drf_fast::cuda::vote_kernel;

template <typename T>
void vote(const std::vector<std::int64_t>& sizes) {
  const std::int64_t rows = sizes[4], classes = sizes[5], images = sizes[6];
  std::vector<unsigned long long> counts = read<unsigned long long>(images * classes);
  const std::vector<T> logits = read<T>(rows * classes);
  const std::int64_t claimed = cuda_on_cpu::planted("overrun") ? rows + 1 : rows;
  const auto kernel = sizes[1] == 4 ? vote_kernel<4, T> : vote_kernel<32, T>;
  cuda_on_cpu::run(true, static_cast<unsigned>(sizes[2]), static_cast<unsigned>(sizes[3]), kernel,
                   logits.data(), claimed, classes, rows / images, counts.data());
  write(counts);
}

int main() {
  for (std::int64_t cases = read<std::int64_t>(1)[0]; cases > 0; --cases) {
    const std::vector<std::int64_t> sizes = read<std::int64_t>(7);
    switch (sizes[0]) {
      case 0:
        vote<float>(sizes);
        break;
      case 1:
        vote<double>(sizes);
        break;
      case 2:
        vote<__nv_bfloat16>(sizes);
        break;
      default:
        vote<__half>(sizes);
    }
  }
}
