// What bindings.cpp calls. Plain C++ types; addresses and sizes were checked by the caller, values
// are checked here and throw std::invalid_argument.
#pragma once

#include <cstdint>

#include "cpu/floats.h"

namespace drf_fast::cpu {

// The noise of batch images of channels * area pixels each, num_samples copies of every image.
struct NoisyRepeat {
  std::int64_t batch, num_samples, channels, area;
  bool channels_last;  // of x and of out; else logical NCHW order
  const std::int64_t* image_ids;
  std::int64_t sample_offset;
  int stream;
  std::uint64_t key;
  double sigma;
};

// out[b m + i] = x[b] + sigma z(key, stream, image_ids[b], sample_offset + i), product and sum
// each rounded in float32 (float64 for float64), then to the dtype.
void noisy_repeat(const void* x, void* out, Dtype dtype, const NoisyRepeat& call, int threads);

// out[b m + i] = float32(u[b] + R)/255, then to the dtype. R are the levels of the words of the
// same noise, whose sigma is in the guide: 63 << bits rows of common/levels.h, of two numbers each.
void noisy_levels(const std::uint8_t* u, void* out, Dtype dtype, const NoisyRepeat& call,
                  const std::int64_t* guide, int bits, int threads);

// out[b] = sum over its num_samples consecutive rows of grad, added in their order.
void noisy_repeat_backward(const void* grad, void* out, Dtype dtype, std::int64_t batch,
                           std::int64_t num_samples, std::int64_t pixels, int threads);

enum class Reduction { kNone, kMean, kSum };

// Logits (batch, samples, classes) and where the loss and its gradient go. Strides are in elements,
// that of the classes is 1; grad may be null and has strides of its own.
struct LossCall {
  Dtype dtype;  // of logits and grad
  std::int64_t batch, samples, classes;
  const void* logits;
  std::int64_t logits_image_stride, logits_sample_stride;
  const std::int64_t* target;  // (batch,)
  Reduction reduction;
  void* loss;  // one value, or (batch,) for kNone; float, double for float64 logits
  void* grad;
  std::int64_t grad_image_stride, grad_sample_stride;
  int threads;
};

// The losses of drf_fast/backends/reference/operations.py, with d(loss)/d(logits). Throw where a
// label is out of range or a row of logits is not a valid distribution; grad may then be half
// written.
void smooth_ce(const LossCall& call);
void consistency_loss(const LossCall& call, double lam, double eta);
void macer_loss(const LossCall& call, double sigma, double lam, double gamma, double beta);

enum class Ball { kNone, kHard, kProx, kShrink, kExcess, kUdr };
enum class GradNorm { kImage, kBatch, kNone };

struct AdversaryStep {
  NoisyRepeat noise;  // batch, shape and layout of the images, and the noise of the next batch
  double step_size, epsilon, lam;
  Ball ball;
  GradNorm grad_norm;
  bool clamp;
  double low, high;  // only with clamp
};

// distance is float64 for float64 images, else float32; all else is of the images' dtype.
struct AdversaryTensors {
  const void *grad, *x, *x_adv;
  void *out, *noisy, *distance;
};

// out = x_adv one step up the sum of grad over the copies, in ball and box; noisy its noisy copies;
// distance[b] = ||out[b] - x[b]||. A zero gradient stays zero.
void adversary_step(const AdversaryTensors& tensors, Dtype dtype, const AdversaryStep& call,
                    int threads);

// The shape (batch, rows, columns, channels) after 2 x 2 pooling, in channels_last order.
struct Pooling {
  std::int64_t batch, rows, columns, channels;
};

// out = relu(max_pool2d(x, 2)); index (null: not wanted) is the position of the maximum in its
// window, 0..3, to which the gradient goes, or 4 where ReLU blocks it.
void max_pool_relu(const void* x, void* out, std::uint8_t* index, Dtype dtype, const Pooling& call,
                   int threads);
void max_pool_relu_backward(const void* grad, const std::uint8_t* index, void* out, Dtype dtype,
                            const Pooling& call, int threads);

// The gradient of max_pool_relu(conv2d(image, weight)) for images of one channel; weight is
// (channels, k, k) with k of 3, 5 or 7, sums are in float32.
void pooled_image_gradient(const void* grad, const std::uint8_t* index, const void* weight,
                           void* out, Dtype dtype, const Pooling& call, int k, int threads);

// counts[image][argmax of each of its rows] += 1. logits is (rows, classes), the rows of an image
// consecutive; rows is a multiple of images. Ties go to the lowest class, a row with a NaN votes
// for none.
void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, int threads);

// out[i] <= the p with P(Bin(trials[i], p) >= successes[i]) = alpha; see common/clopper_pearson.h.
void clopper_pearson_lower(const std::int64_t* successes, const std::int64_t* trials, double alpha,
                           double* out, std::int64_t size, int threads);

// out[i] <= sigma * Phi^-1 of that p, 0 where p <= 1/2; see common/certified_radius.h.
void certified_radius(const std::int64_t* successes, const std::int64_t* trials, double sigma,
                      double alpha, double* out, std::int64_t size, int threads);

}  // namespace drf_fast::cpu
