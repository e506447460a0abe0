// Before and after the tiles of a loss: checks of labels, of logits, and the reduction.
#include "cpu/losses.h"

#include <stdexcept>
#include <string>

#include "cpu/huge_pages.h"

namespace drf_fast::cpu {

void check_labels(const LossCall& call) {
  for (std::int64_t image = 0; image < call.batch; ++image) {
    const std::int64_t label = call.target[image];
    if (label < 0 || label >= call.classes) {
      const std::string classes = std::to_string(call.classes);
      throw std::invalid_argument("target must lie in 0.." + std::to_string(call.classes - 1) +
                                  " for logits of " + classes + " classes, got " +
                                  std::to_string(label) + " at index " + std::to_string(image) +
                                  "; check the labels or the network's width");
    }
  }
}

void expect_gradient(const LossCall& call) {
  const std::int64_t values = (call.batch - 1) * call.grad_image_stride +
                              (call.samples - 1) * call.grad_sample_stride + call.classes;
  const std::size_t size = call.dtype == Dtype::kFloat64   ? 8
                           : call.dtype == Dtype::kFloat32 ? 4
                                                           : 2;
  expect_writes(call.grad, size * static_cast<std::size_t>(values));
}

void write_loss(const LossCall& call, const std::vector<ImageLoss>& losses) {
  double total = 0.0;
  for (std::size_t image = 0; image < losses.size(); ++image) {
    if (!losses[image].valid) {
      throw std::invalid_argument(
          "logits must be numbers (no NaN, no +inf, no row of -inf only), got such a row for "
          "image " +
          std::to_string(image) + "; the network diverged or its input holds NaN");
    }
    total += losses[image].value;
  }
  const auto write = [&](auto* out) {
    using A = std::remove_pointer_t<decltype(out)>;
    if (call.reduction == Reduction::kNone) {
      for (const ImageLoss& loss : losses) *out++ = static_cast<A>(loss.value);
    } else {
      const bool mean = call.reduction == Reduction::kMean;
      *out = static_cast<A>(mean ? total / static_cast<double>(call.batch) : total);
    }
  };
  if (call.dtype == Dtype::kFloat64) {
    write(static_cast<double*>(call.loss));
  } else {
    write(static_cast<float*>(call.loss));
  }
}

}  // namespace drf_fast::cpu
