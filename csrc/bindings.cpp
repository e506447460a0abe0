// drf_fast._C: addresses and sizes come in as integers, checked by _native.py.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "cpu/operations.h"

#ifndef DRF_FAST_FLAGS
#define DRF_FAST_FLAGS "unknown"
#endif

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

void noisy_repeat_backward(std::uintptr_t grad, std::uintptr_t out, const std::string& dtype,
                           std::int64_t batch, std::int64_t num_samples, std::int64_t pixels,
                           int threads) {
  drf_fast::cpu::noisy_repeat_backward(reinterpret_cast<const void*>(grad),
                                       reinterpret_cast<void*>(out), dtype_of(dtype), batch,
                                       num_samples, pixels, threads);
}

// Nothing here may differ between two builds of the same source: no date, no host name.
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
  info["flags"] = DRF_FAST_FLAGS;
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
  module.doc() = "C++ core of drf_fast; called through drf_fast._native only.";
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
  module.def("noisy_repeat_backward", &noisy_repeat_backward, unlocked, py::arg("grad"),
             py::arg("out"), py::arg("dtype"), py::arg("batch"), py::arg("num_samples"),
             py::arg("pixels"), py::arg("threads"), "Sum over the copies of each image.");
  module.def("build_info", &build_info, "Compiler, flags and features of this build.");
}
