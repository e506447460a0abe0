// Normal quantiles, from the upper tail and from the distance to one half.
#pragma once

#include <cmath>

#include "elementary.h"
#include "half_line_rule.h"

namespace drf_fast {

// exp(-x t - t^2 / 2): its integral over t >= 0 is Mills' ratio, Q(x) divided by the density at x.
struct MillsIntegrand {
  double x;
  DRF_HD double operator()(double t) const { return exp_(-(x + 0.5 * t) * t); }
};

DRF_HD inline double mills_ratio(double x) {
  const double length = 2.0 * kTailExponent / (x + std::sqrt(x * x + 2.0 * kTailExponent));
  return integrate_half_line(length, MillsIntegrand{x});
}

// The x with Q(x) = q, for q in (0, 0.42], Q(x) = P(N(0, 1) > x).
//
// Start: a rational function of t = sqrt(-2 log q), fitted here so that |log Q(x) - log q| is at
// most 1.8e-5 for x in [0.2, 38.6]. One step: with y = log Q(x) - log q the inverse function obeys
// dx/dy = M(x) and M' = x M - 1 (M: Mills' ratio), and its third-order series leaves y^4 < 1e-18.
//
// Error: y carries u (12 + 2 x^2 + 2 |log q|) (roundings of x^2/2 and log q, 40u of M counted
// below) and -log q <= x^2/2 + 4 here; a step costs M |error of y|, M <= 1/x, and M <= 1.05. So the
// relative error of x is at most M (60 + 3 x^2) u / x + 2u <= kQuantileError, for x >= 0.2.
constexpr double kQuantileError = 320.0 * kUnit;

DRF_HD inline double upper_normal_quantile(double q) {
  const double log_q = log_(q);
  const double t = std::sqrt(-2.0 * log_q);
  const double above = ((0.005027694833 * t + 0.3894277263) * t + 3.166991204) * t + 2.800872561;
  const double below =
      (((0.0006946860788 * t + 0.08609120365) * t + 1.199524483) * t + 2.723798077) * t + 1.0;
  const double x = t - above / below;
  const double mills = mills_ratio(x);
  const double y = log_(mills / kSqrt2Pi) - 0.5 * x * x - log_q;
  const double e = x * mills - 1.0;
  return x + mills * y * (1.0 + y * (e / 2.0 + y * (mills * mills + x * mills * e + e * e) / 6.0));
}

// The x with P(N(0, 1) <= x) = 1/2 + excess, for excess in [0, 0.1]: the Taylor series of the
// inverse error function, all terms positive. The first term left out is below 4e-19 relative; the
// relative error is below 6u. Near 1/2 it keeps the digits that 1 - p has lost.
DRF_HD inline double central_normal_quantile(double excess) {
  const double z = excess * excess;
  double sum = 107007.17551484572;
  sum = sum * z + 29606.139419715761;
  sum = sum * z + 8276.6104677178551;
  sum = sum * z + 2343.3847172212110;
  sum = sum * z + 674.15891870555762;
  sum = sum * z + 197.98451474505005;
  sum = sum * z + 59.773440899670547;
  sum = sum * z + 18.764564317793503;
  sum = sum * z + 6.2504716482509161;
  sum = sum * z + 2.3029076935875170;
  sum = sum * z + 1.0471975511965977;
  return kSqrt2Pi * excess * (1.0 + sum * z);
}

}  // namespace drf_fast
