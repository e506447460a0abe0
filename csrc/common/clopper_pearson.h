// The one-sided Clopper-Pearson lower bound, rounded towards safety.
//
// p_L solves P(Bin(n, p) >= k) = alpha. Closed forms: 0 at k = 0, alpha^(1/n) at k = n and
// 1 - (1 - alpha)^(1/n) at k = 1. For alpha > 1/2 the mirrored problem is solved, with small <=
// 1/2: 1 - p_L is the root for n - k + 1 successes at level 1 - alpha, a difference that is exact.
//
// Iteration. log T is concave in log p (T is the distribution function of a Beta(k, m + 1)
// variable, and the logarithm of such a variable has a log-concave density). So Newton steps in log
// p need no bracket: from the left of the root they rise to it and never pass it, from the right
// one step leads to the left. Once |y| = |log(T / level)| <= 1/4 the inverse function's series does
// better: with M(w) = T/T' at p - w, dw/dy = M and M' = g M - 1, g = -d log G / dw
// (binomial_tail.h), so
//   w = M y (1 + c2 y/2 + c3 y^2/6 + c4 y^3/24),   c2 = e = mu - 1,   c3 = kappa + mu e + e^2,
//   c4 = tau + kappa (6e + mu) + 4 mu e^2 + e^3 + mu^2 e,
// mu, kappa, tau being g, g', g'' in units of M (and M = p W there). It is final when |y| <= 1e-3:
// the next term is below y^5/120 = 1e-17 of M, and far below the error of y itself.
//
// Margin. The root moves by M per unit of y (M changes by less than 0.2 % within the last step, for
// which 1.01 allows), y is off by at most tail_log_error, and the update of p or s rounds once:
//   margin = 1.01 M tail_log_error + 2u (the smaller of p and s).
// The bounds below add what the last roundings cost. For n = 1e5, k > n/2, alpha = 0.001 the margin
// is 2e-15 s, where s = k/n - p is the distance that the bound keeps from k/n.
//
// Nothing here depends on the size of n but that integers are exact: trials up to 2^53 are
// accepted.
#pragma once

#include "binomial_tail.h"
#include "normal_quantile.h"

namespace drf_fast {

// The numbers that depend on alpha alone.
struct Level {
  double small, log_small, log_rest;  // min(alpha, 1 - alpha), its log, log(1 - small)
  double z;                           // normal quantile: Q(z) = small
  bool mirrored;                      // alpha > 1/2
};

DRF_HD inline Level make_level(double alpha) {
  const bool mirrored = alpha > 0.5;
  const double small = mirrored ? 1.0 - alpha : alpha;
  const double z =
      small > 0.4 ? central_normal_quantile(0.5 - small) : upper_normal_quantile(small);
  return {small, log_(small), -small - x_minus_log1p(-small), z, mirrored};
}

// Bounds of p_L, each number on the safe side of the exact value.
struct LowerBound {
  double p;           // <= p_L
  double complement;  // >= 1 - p_L
  double excess;      // <= p_L - 1/2, with the digits that a difference from 1/2 would lose
};

struct Root {
  Split at;
  double margin;
};

// Cornish-Fisher start (Carter 1947) for the quantile of Beta(k, m + 1), in terms of its logit.
DRF_HD inline double start_of_root(double k, double m, double z) {
  const double a = 1.0 / (2.0 * k - 1.0), b = 1.0 / (2.0 * m + 1.0);
  const double h = 2.0 / (a + b);
  const double r = (z * z - 3.0) / 6.0;
  const double half_logit = z * std::sqrt(h + r) / h - (b - a) * (r + 5.0 / 6.0 - 2.0 / (3.0 * h));
  const double odds = k * exp_(-2.0 * half_logit);
  return odds / (odds + (m + 1.0));
}

// The p with P(Bin(n, p) >= k) = small, for 2 <= k < n and m = n - k.
DRF_HD inline Root solve_tail(double k, double m, double n, const Level& level) {
  constexpr int kMaxSteps = 20;  // 1 at n = 1e5; the most ever seen is 4, at alpha = 1e-300
  const double phat = k / n;
  const double stirling = stirling_error(n) - stirling_error(k) - stirling_error(m);
  const double start = start_of_root(k, m, level.z);
  Split at = start < 0.5 * phat ? split_by_p(start, k, m, n) : split_by_s(phat - start, k, m, n);
  double margin = 0.0;
  for (int step = 0; step < kMaxSteps; ++step) {
    const TailPoint t = binomial_tail(k, m, n, at, stirling, level.log_small);
    const double y = t.y;
    double shift;
    if (std::fabs(y) <= 0.25) {
      const double mu = t.slope, kappa = t.bend, e = mu - 1.0;
      const double c3 = kappa + mu * e + e * e;
      const double c4 =
          t.bend_slope + kappa * (6.0 * e + mu) + e * (4.0 * mu * e + e * e + mu * mu);
      shift = at.p * t.unit * y * (1.0 + y * (e / 2.0 + y * (c3 / 6.0 + y * c4 / 24.0)));
    } else {
      shift = -at.p * expm1_(-t.unit * y);
    }
    // Update the smaller of p and s, so that neither loses digits to cancellation.
    const double p = at.p - shift;
    at = p < 0.5 * phat ? split_by_p(p, k, m, n) : split_by_s(at.s + shift, k, m, n);
    margin = 1.01 * at.p * t.unit * tail_log_error(t.deviance, level.log_small);
    if (std::fabs(y) <= 1e-3) break;
  }
  return {at, margin + 2.0 * kUnit * (at.p < std::fabs(at.s) ? at.p : std::fabs(at.s))};
}

// 1 - x rounded down, for x in [0, 1]: the difference 1 - result is exact for result >= 1/2.
DRF_HD inline double one_minus_down(double x) {
  const double rounded = 1.0 - x;
  return 1.0 - rounded < x ? next_below(rounded) : rounded;
}

// A bound from p and 1 - p, each with its safe-side error already included; the larger of the two
// is recomputed from the smaller one.
DRF_HD inline LowerBound safe_bound(double p, double complement, double excess) {
  p = p > 0.0 ? p : 0.0;
  if (complement <= 0.5) p = one_minus_down(complement);
  return {p, complement < 1.0 ? complement : 1.0, excess};
}

DRF_HD inline LowerBound clopper_pearson_bound(double k, double n, const Level& level) {
  constexpr double kDown = 1.0 - 8.0 * kUnit, kUp = 1.0 + 8.0 * kUnit;
  if (k == 0.0) return {0.0, 1.0, -0.5};
  if (k == n || k == 1.0) {
    // exp and -expm1 of this logarithm are p_L and 1 - p_L at k = n, the reverse at k = 1. Its
    // relative error is at most 5u, which exp multiplies by its size.
    const double log_alpha = level.mirrored ? level.log_rest : level.log_small;
    const double log_rest = level.mirrored ? level.log_small : level.log_rest;
    const double exponent = (k == n ? log_alpha : log_rest) / n;
    const double power = exp_(exponent), rest = -expm1_(exponent);
    const double power_error = kUnit * power * (8.0 - 6.0 * exponent);
    const double rest_error = kUnit * rest * 12.0;
    const double p = k == n ? power - power_error : rest - rest_error;
    const double complement = k == n ? rest + rest_error : power + power_error;
    return safe_bound(p, complement, (0.5 - complement) - kUnit);
  }
  if (!level.mirrored) {
    const double m = n - k;
    const Root root = solve_tail(k, m, n, level);
    const double s = root.at.s + root.margin;
    const double half = 0.5 * (k - m) / n;
    const double p = root.at.p - root.margin -
                     (root.at.p < root.at.s ? 4.0 * kUnit * root.at.p : 4.0 * kUnit * k / n);
    return safe_bound(p, (m / n + s) * kUp,
                      (half - s) - 2.0 * kUnit * (std::fabs(half) + std::fabs(s)));
  }
  const double mirror_k = n - k + 1.0, mirror_m = k - 1.0;
  const Root root = solve_tail(mirror_k, mirror_m, n, level);
  const double s = root.at.s - root.margin;
  const double half = 0.5 * (mirror_m - mirror_k) / n;
  const double complement =
      root.at.p + root.margin +
      (root.at.p < root.at.s ? 4.0 * kUnit * root.at.p : 4.0 * kUnit * mirror_k / n);
  return safe_bound((mirror_m / n + s) * kDown, complement,
                    (half + s) - 4.0 * kUnit * (std::fabs(half) + std::fabs(s)));
}

}  // namespace drf_fast
