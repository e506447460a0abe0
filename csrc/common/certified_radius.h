// The certified radius sigma * Phi^-1(p_L) from the counts, rounded towards safety.
//
// p_L = 1 - q near 1 has no digits left as a double, so the quantile is taken from the upper bound
// of q; near 1/2 q has none left for the difference, so the quantile is taken from the lower bound
// of p_L - 1/2. Both are monotone, so a safe argument gives a safe radius, less the margin of the
// quantile itself and one rounding of the product.
//
// Guarantee: the radius is never above the true one. It is below it by less than 1e-11 relative
// wherever p_L - 1/2 >= 1e-3 s, s = k/n - p_L (for alpha = 0.001: every k if n <= 100,000, all but
// the nearest few in 1e5 for larger n). Closer to 1/2 no relative bound can hold in double
// precision (s is known to about 2e-15 of itself); there the deficit is at most 1e-14 sigma s in
// absolute terms.
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
