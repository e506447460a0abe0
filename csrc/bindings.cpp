// drf_fast._C: addresses and sizes come in as integers, checked by drf_fast/backends/native.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/isa.h"
#include "cpu/operations.h"

namespace py = pybind11;

namespace {

using drf_fast::cpu::Dtype;

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float64") return Dtype::kFloat64;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float16") return Dtype::kFloat16;
  throw std::invalid_argument("expected tensors of float32, float64, bfloat16 or float16, got " +
                              name + "; convert them");
}

void vote(std::uintptr_t logits, const std::string& dtype, std::int64_t rows, std::int64_t classes,
          std::uintptr_t counts, std::int64_t images, int threads) {
  const Dtype kind = dtype_of(dtype);
  if (rows > 0 && (classes < 1 || images < 1 || rows % images != 0)) {
    throw std::invalid_argument(
        "vote: expected at least one class and rows that are a multiple of the images, got " +
        std::to_string(rows) + " rows, " + std::to_string(classes) + " classes and " +
        std::to_string(images) + " images; pass each image the same number of rows");
  }
  drf_fast::cpu::vote(reinterpret_cast<const void*>(logits), kind, rows, classes,
                      reinterpret_cast<std::int64_t*>(counts), images, threads);
}

void clopper_pearson_lower(std::uintptr_t successes, std::uintptr_t trials, double alpha,
                           std::uintptr_t out, std::int64_t size, int threads) {
  drf_fast::cpu::clopper_pearson_lower(reinterpret_cast<const std::int64_t*>(successes),
                                       reinterpret_cast<const std::int64_t*>(trials), alpha,
                                       reinterpret_cast<double*>(out), size, threads);
}

void certified_radius(std::uintptr_t successes, std::uintptr_t trials, double sigma, double alpha,
                      std::uintptr_t out, std::int64_t size, int threads) {
  drf_fast::cpu::certified_radius(reinterpret_cast<const std::int64_t*>(successes),
                                  reinterpret_cast<const std::int64_t*>(trials), sigma, alpha,
                                  reinterpret_cast<double*>(out), size, threads);
}

void noisy_repeat(std::uintptr_t x, std::uintptr_t out, const std::string& dtype,
                  std::int64_t batch, std::int64_t num_samples, std::int64_t channels,
                  std::int64_t area, bool channels_last, std::uintptr_t image_ids,
                  std::int64_t sample_offset, int stream, std::int64_t key, double sigma,
                  int threads) {
  const drf_fast::cpu::NoisyRepeat call{
      batch,         num_samples,   channels,
      area,          channels_last, reinterpret_cast<const std::int64_t*>(image_ids),
      sample_offset, stream,        static_cast<std::uint64_t>(key),
      sigma};
  drf_fast::cpu::noisy_repeat(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out),
                              dtype_of(dtype), call, threads);
}

void noisy_levels(std::uintptr_t u, std::uintptr_t out, const std::string& dtype,
                  std::int64_t batch, std::int64_t num_samples, std::int64_t channels,
                  std::int64_t area, bool channels_last, std::uintptr_t image_ids,
                  std::int64_t sample_offset, int stream, std::int64_t key, std::uintptr_t guide,
                  int bits, int threads) {
  const drf_fast::cpu::NoisyRepeat call{batch,
                                        num_samples,
                                        channels,
                                        area,
                                        channels_last,
                                        reinterpret_cast<const std::int64_t*>(image_ids),
                                        sample_offset,
                                        stream,
                                        static_cast<std::uint64_t>(key),
                                        0.0};
  drf_fast::cpu::noisy_levels(reinterpret_cast<const std::uint8_t*>(u),
                              reinterpret_cast<void*>(out), dtype_of(dtype), call,
                              reinterpret_cast<const std::int64_t*>(guide), bits, threads);
}

void noisy_repeat_backward(std::uintptr_t grad, std::uintptr_t out, const std::string& dtype,
                           std::int64_t batch, std::int64_t num_samples, std::int64_t pixels,
                           int threads) {
  drf_fast::cpu::noisy_repeat_backward(reinterpret_cast<const void*>(grad),
                                       reinterpret_cast<void*>(out), dtype_of(dtype), batch,
                                       num_samples, pixels, threads);
}

template <typename Choice, std::size_t N>
Choice choice_of(const std::string& name, const std::pair<const char*, Choice> (&table)[N],
                 const char* what) {
  std::string expected;
  for (const auto& [known, value] : table) {
    if (name == known) return value;
    expected += std::string(expected.empty() ? "" : ", ") + known;
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + expected + ", got " +
                              name + "; correct it");
}

void adversary_step(std::uintptr_t grad, std::uintptr_t x, std::uintptr_t x_adv, std::uintptr_t out,
                    std::uintptr_t noisy, std::uintptr_t distance, const std::string& dtype,
                    std::int64_t batch, std::int64_t num_samples, std::int64_t channels,
                    std::int64_t area, bool channels_last, std::uintptr_t image_ids,
                    std::int64_t key, double sigma, double step_size, double epsilon, double lam,
                    const std::string& ball, const std::string& grad_norm, bool clamp, double low,
                    double high, int threads) {
  using drf_fast::cpu::Ball;
  using drf_fast::cpu::GradNorm;
  static constexpr std::pair<const char*, Ball> kBalls[] = {
      {"none", Ball::kNone},     {"hard", Ball::kHard},     {"prox", Ball::kProx},
      {"shrink", Ball::kShrink}, {"excess", Ball::kExcess}, {"udr", Ball::kUdr}};
  static constexpr std::pair<const char*, GradNorm> kNorms[] = {
      {"image", GradNorm::kImage}, {"batch", GradNorm::kBatch}, {"none", GradNorm::kNone}};
  const drf_fast::cpu::AdversaryStep call{{batch, num_samples, channels, area, channels_last,
                                           reinterpret_cast<const std::int64_t*>(image_ids), 0, 0,
                                           static_cast<std::uint64_t>(key), sigma},
                                          step_size,
                                          epsilon,
                                          lam,
                                          choice_of(ball, kBalls, "ball"),
                                          choice_of(grad_norm, kNorms, "grad_norm"),
                                          clamp,
                                          low,
                                          high};
  const drf_fast::cpu::AdversaryTensors tensors{
      reinterpret_cast<const void*>(grad),  reinterpret_cast<const void*>(x),
      reinterpret_cast<const void*>(x_adv), reinterpret_cast<void*>(out),
      reinterpret_cast<void*>(noisy),       reinterpret_cast<void*>(distance)};
  drf_fast::cpu::adversary_step(tensors, dtype_of(dtype), call, threads);
}

void max_pool_relu(std::uintptr_t x, std::uintptr_t out, std::uintptr_t index,
                   const std::string& dtype, std::int64_t batch, std::int64_t rows,
                   std::int64_t columns, std::int64_t channels, int threads) {
  drf_fast::cpu::max_pool_relu(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out),
                               reinterpret_cast<std::uint8_t*>(index), dtype_of(dtype),
                               {batch, rows, columns, channels}, threads);
}

void max_pool_relu_backward(std::uintptr_t grad, std::uintptr_t index, std::uintptr_t out,
                            const std::string& dtype, std::int64_t batch, std::int64_t rows,
                            std::int64_t columns, std::int64_t channels, int threads) {
  drf_fast::cpu::max_pool_relu_backward(
      reinterpret_cast<const void*>(grad), reinterpret_cast<const std::uint8_t*>(index),
      reinterpret_cast<void*>(out), dtype_of(dtype), {batch, rows, columns, channels}, threads);
}

void pooled_image_gradient(std::uintptr_t grad, std::uintptr_t index, std::uintptr_t weight,
                           std::uintptr_t out, const std::string& dtype, std::int64_t batch,
                           std::int64_t rows, std::int64_t columns, std::int64_t channels, int k,
                           int threads) {
  drf_fast::cpu::pooled_image_gradient(
      reinterpret_cast<const void*>(grad), reinterpret_cast<const std::uint8_t*>(index),
      reinterpret_cast<const void*>(weight), reinterpret_cast<void*>(out), dtype_of(dtype),
      {batch, rows, columns, channels}, k, threads);
}

// Binds a loss: the arguments that all losses have, then its own weights.
template <typename... Weights, typename... Names>
void define_loss(py::module_& module, const char* name,
                 void (*function)(const drf_fast::cpu::LossCall&, Weights...), const char* doc,
                 Names... names) {
  static_assert(sizeof...(Weights) == sizeof...(Names), "each weight has one name");
  const auto call = [function](std::uintptr_t logits, const std::string& dtype, std::int64_t batch,
                               std::int64_t samples, std::int64_t classes,
                               std::int64_t logits_image_stride, std::int64_t logits_sample_stride,
                               std::uintptr_t target, const std::string& reduction,
                               std::uintptr_t loss, std::uintptr_t grad,
                               std::int64_t grad_image_stride, std::int64_t grad_sample_stride,
                               int threads, Weights... weights) {
    using drf_fast::cpu::Reduction;
    static constexpr std::pair<const char*, Reduction> kReductions[] = {
        {"none", Reduction::kNone}, {"mean", Reduction::kMean}, {"sum", Reduction::kSum}};
    function(
        {dtype_of(dtype), batch, samples, classes, reinterpret_cast<const void*>(logits),
         logits_image_stride, logits_sample_stride, reinterpret_cast<const std::int64_t*>(target),
         choice_of(reduction, kReductions, "reduction"), reinterpret_cast<void*>(loss),
         reinterpret_cast<void*>(grad), grad_image_stride, grad_sample_stride, threads},
        weights...);
  };
  module.def(name, call, py::call_guard<py::gil_scoped_release>(), py::arg("logits"),
             py::arg("dtype"), py::arg("batch"), py::arg("samples"), py::arg("classes"),
             py::arg("logits_image_stride"), py::arg("logits_sample_stride"), py::arg("target"),
             py::arg("reduction"), py::arg("loss"), py::arg("grad"), py::arg("grad_image_stride"),
             py::arg("grad_sample_stride"), py::arg("threads"), py::arg(names)..., doc);
}

void use_isa(const std::string& name) {
  if (drf_fast::cpu::use_isa(name)) return;
  throw std::invalid_argument("DRF_FAST_ISA: expected one of baseline, avx2, avx512, got '" + name +
                              "'; correct it or unset it");
}

// Equal for all builds of one source with one compiler: no date, no host name.
py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
  info["compiler"] = "unknown";
#endif
#if defined(_MSVC_LANG)
  info["cxx_standard"] = static_cast<long>(_MSVC_LANG);
#else
  info["cxx_standard"] = static_cast<long>(__cplusplus);
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["isa"] = drf_fast::cpu::isa_name(drf_fast::cpu::active_isa());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ core of drf_fast; called through drf_fast.backends.native only.";
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("vote", &vote, unlocked, py::arg("logits"), py::arg("dtype"), py::arg("rows"),
             py::arg("classes"), py::arg("counts"), py::arg("images"), py::arg("threads"),
             "Add the argmax of each row to the histogram of its image.");
  module.def("clopper_pearson_lower", &clopper_pearson_lower, unlocked, py::arg("successes"),
             py::arg("trials"), py::arg("alpha"), py::arg("out"), py::arg("size"),
             py::arg("threads"), "Lower confidence bounds, rounded towards safety.");
  module.def("certified_radius", &certified_radius, unlocked, py::arg("successes"),
             py::arg("trials"), py::arg("sigma"), py::arg("alpha"), py::arg("out"), py::arg("size"),
             py::arg("threads"), "Certified radii, rounded towards safety.");
  module.def("noisy_repeat", &noisy_repeat, unlocked, py::arg("x"), py::arg("out"),
             py::arg("dtype"), py::arg("batch"), py::arg("num_samples"), py::arg("channels"),
             py::arg("area"), py::arg("channels_last"), py::arg("image_ids"),
             py::arg("sample_offset"), py::arg("stream"), py::arg("key"), py::arg("sigma"),
             py::arg("threads"), "Noisy copies of each image.");
  module.def("noisy_levels", &noisy_levels, unlocked, py::arg("u"), py::arg("out"),
             py::arg("dtype"), py::arg("batch"), py::arg("num_samples"), py::arg("channels"),
             py::arg("area"), py::arg("channels_last"), py::arg("image_ids"),
             py::arg("sample_offset"), py::arg("stream"), py::arg("key"), py::arg("guide"),
             py::arg("bits"), py::arg("threads"), "Noisy copies of each 8-bit image.");
  module.def("noisy_repeat_backward", &noisy_repeat_backward, unlocked, py::arg("grad"),
             py::arg("out"), py::arg("dtype"), py::arg("batch"), py::arg("num_samples"),
             py::arg("pixels"), py::arg("threads"), "Sum over the copies of each image.");
  module.def("adversary_step", &adversary_step, unlocked, py::arg("grad"), py::arg("x"),
             py::arg("x_adv"), py::arg("out"), py::arg("noisy"), py::arg("distance"),
             py::arg("dtype"), py::arg("batch"), py::arg("num_samples"), py::arg("channels"),
             py::arg("area"), py::arg("channels_last"), py::arg("image_ids"), py::arg("key"),
             py::arg("sigma"), py::arg("step_size"), py::arg("epsilon"), py::arg("lam"),
             py::arg("ball"), py::arg("grad_norm"), py::arg("clamp"), py::arg("low"),
             py::arg("high"), py::arg("threads"),
             "One step of the adversary and the next noisy batch.");
  module.def("max_pool_relu", &max_pool_relu, unlocked, py::arg("x"), py::arg("out"),
             py::arg("index"), py::arg("dtype"), py::arg("batch"), py::arg("rows"),
             py::arg("columns"), py::arg("channels"), py::arg("threads"),
             "ReLU of the maxima of 2 x 2 windows, and where they are.");
  module.def("max_pool_relu_backward", &max_pool_relu_backward, unlocked, py::arg("grad"),
             py::arg("index"), py::arg("out"), py::arg("dtype"), py::arg("batch"), py::arg("rows"),
             py::arg("columns"), py::arg("channels"), py::arg("threads"), "Its backward.");
  module.def("pooled_image_gradient", &pooled_image_gradient, unlocked, py::arg("grad"),
             py::arg("index"), py::arg("weight"), py::arg("out"), py::arg("dtype"),
             py::arg("batch"), py::arg("rows"), py::arg("columns"), py::arg("channels"),
             py::arg("k"), py::arg("threads"),
             "Its gradient for the one-channel images of a convolution before it.");
  define_loss(module, "smooth_ce", &drf_fast::cpu::smooth_ce,
              "Cross-entropy of the mean probabilities, and its gradient.");
  define_loss(module, "consistency_loss", &drf_fast::cpu::consistency_loss,
              "Cross-entropy, divergence (lam) and entropy (eta), and their gradient.", "lam",
              "eta");
  define_loss(module, "macer_loss", &drf_fast::cpu::macer_loss,
              "Loss with margin (sigma, lam, gamma, beta), and its gradient.", "sigma", "lam",
              "gamma", "beta");
  module.def("use_isa", &use_isa, py::arg("name"),
             "Use no more than this instruction set; all that the processor has for \"\".");
  module.def("build_info", &build_info, "Compiler and features of this build.");
}
