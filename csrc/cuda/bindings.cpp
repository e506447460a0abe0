// drf_fast._CUDA: addresses, sizes and a stream come in as integers, checked by
// drf_fast/backends/native.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/operations.h"

namespace py = pybind11;

namespace {

using drf_fast::cuda::Dtype;

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float64") return Dtype::kFloat64;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float16") return Dtype::kFloat16;
  throw std::invalid_argument(
      "vote: expected logits of float32, float64, bfloat16 or float16, got " + name +
      "; convert them");
}

void vote(std::uintptr_t logits, const std::string& dtype, std::int64_t rows, std::int64_t classes,
          std::uintptr_t counts, std::int64_t images, int device, std::uintptr_t stream) {
  const Dtype kind = dtype_of(dtype);
  if (rows > 0 && (classes < 1 || images < 1 || rows % images != 0)) {
    throw std::invalid_argument(
        "vote: expected at least one class and rows that are a multiple of the images, got " +
        std::to_string(rows) + " rows, " + std::to_string(classes) + " classes and " +
        std::to_string(images) + " images; pass each image the same number of rows");
  }
  drf_fast::cuda::vote(reinterpret_cast<const void*>(logits), kind, rows, classes,
                       reinterpret_cast<std::int64_t*>(counts), images, {device, stream});
}

void clopper_pearson_lower(std::uintptr_t successes, std::uintptr_t trials, std::uintptr_t alpha,
                           std::uintptr_t out, std::int64_t size, int device,
                           std::uintptr_t stream) {
  drf_fast::cuda::clopper_pearson_lower(reinterpret_cast<const std::int64_t*>(successes),
                                        reinterpret_cast<const std::int64_t*>(trials),
                                        reinterpret_cast<const double*>(alpha),
                                        reinterpret_cast<double*>(out), size, {device, stream});
}

void certified_radius(std::uintptr_t successes, std::uintptr_t trials, std::uintptr_t sigma,
                      std::uintptr_t alpha, std::uintptr_t out, std::int64_t size, int device,
                      std::uintptr_t stream) {
  drf_fast::cuda::certified_radius(reinterpret_cast<const std::int64_t*>(successes),
                                   reinterpret_cast<const std::int64_t*>(trials),
                                   reinterpret_cast<const double*>(sigma),
                                   reinterpret_cast<const double*>(alpha),
                                   reinterpret_cast<double*>(out), size, {device, stream});
}

}  // namespace

PYBIND11_MODULE(_CUDA, module) {
  module.doc() = "CUDA kernels of drf_fast; called through drf_fast.backends.native only.";
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("why_not", &drf_fast::cuda::why_not,
             "Empty when the driver can run this build, else one sentence why it cannot.");
  module.def("architectures", &drf_fast::cuda::architectures,
             "Compute capabilities with machine code, 75 for 7.5, ascending; PTX of the last.");
  module.def("vote", &vote, unlocked, py::arg("logits"), py::arg("dtype"), py::arg("rows"),
             py::arg("classes"), py::arg("counts"), py::arg("images"), py::arg("device"),
             py::arg("stream"),
             "Add the argmax of each row to the histogram of its image, on the given stream.");
  module.def("clopper_pearson_lower", &clopper_pearson_lower, unlocked, py::arg("successes"),
             py::arg("trials"), py::arg("alpha"), py::arg("out"), py::arg("size"),
             py::arg("device"), py::arg("stream"),
             "Lower confidence bounds, rounded towards safety; alpha is an address too.");
  module.def("certified_radius", &certified_radius, unlocked, py::arg("successes"),
             py::arg("trials"), py::arg("sigma"), py::arg("alpha"), py::arg("out"), py::arg("size"),
             py::arg("device"), py::arg("stream"),
             "Certified radii, rounded towards safety; sigma and alpha are addresses too.");
}
