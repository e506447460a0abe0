// The certified radius sigma * Phi^-1(p_L) from the counts, rounded towards safety.
//
// Near 1 a double p_L = 1 - q loses the digits of q, so the quantile is taken from the upper bound
// of q; near 1/2 q loses those of the difference, so it is taken from the lower bound of p_L - 1/2.
// Both are monotone, so a safe argument gives a safe radius, less the margin of the quantile itself
// and one rounding of the product.
//
// Guarantee, for alpha from 1e-12 to 1/2: never above the true radius, and below it by less than
// 1e-11 of it wherever p_L - 1/2 >= 0.002 / sqrt(n). The error of p_L there is at most twice the
// margin of clopper_pearson.h, 130u of a standard deviation 1 / (2 sqrt(n)), plus 42u for
// roundings: 1.7e-14 / sqrt(n); the quantile's own margin adds 7e-14 relative. This leaves out
// about 0.002 sqrt(n) of the n counts: less than one up to n = 250,000, 63 at n = 1e9. For those
// the radius, itself below 0.006 sigma / sqrt(n), is too small by at most 5e-14 sigma / sqrt(n).
#pragma once

#include "clopper_pearson.h"

namespace drf_fast {

DRF_HD inline double certified_radius_of(const LowerBound& bound, double sigma) {
  if (!(bound.excess > 0.0)) return 0.0;
  const double quantile = bound.excess <= 0.1 ? central_normal_quantile(bound.excess)
                                              : upper_normal_quantile(bound.complement);
  const double safe = quantile * (1.0 - kQuantileError);
  const double radius = sigma * safe;
  return next_below(radius);  // of infinity, too: a huge sigma gives the largest double
}

}  // namespace drf_fast
