// The upper tail T(p) = P(Bin(n, p) >= k) near the p where it equals a given level.
//
// With m = n - k, phat = k/n, q = 1 - p and s = phat - p, the tail is an integral over success
// probabilities x = p (1 - f) (Abramowitz and Stegun 1964, 26.5.24), relative to its value at p:
//
//   T(p) = k pmf(k) W,   W = integral of G(f) over [0, 1],   G(f) = (1 - f)^(k-1) (1 + f p/q)^m,
//   pmf(k) = sqrt(n / (2 pi k m)) exp(-D + e(n) - e(k) - e(m))       (Loader 2000),
//   D = k a(-s/phat) + m a(s/qhat),   a(x) = x - log(1 + x),   e(j): error of Stirling's formula,
//   -log G(f) = f (n s - q) / q + (k - 1) a(-f) + m a(f p/q).
//
// Why this form. Differences of log-gammas, or k log p + m log q, lose as many digits as n has.
// Here nothing large cancels: with s known exactly, k - n p = n s is one product; the linear terms
// of D cancel exactly and are never formed; D and log G are sums of terms of one sign; W is a sum
// of positive terms, 28 whatever n and k are (half_line_rule.h), G being log-concave.
//
// Error of y = log(T / level), for 2 <= k, 1 <= m and given s (or p, see Split), u = 2^-53:
//   D            arguments of a() carry 2u, a() doubles that and adds 6u (9u outside [-1/2, 1]);
//                product and sum 2u: at most 16u D
//   log level    1u |log level| + 2u, once a call
//   W            arguments 3u, doubled, a() 6u to 9u, sums 2u: relative error 18u of log G, whose
//                mean under the weight G / W is at most 2; exp 3u; rule 4u; sum 28u: 71u
//   e(j)         each below 0.09 and with relative error below 4u: 1u together
//   size         sqrt and ratios 5u; its log 2u + u |log|, and |log| <= |log level| + D + 1
//   sums         2u (D + |log level|)
// Together: |error of y| <= u (96 + 19 D + 4 |log level|). Measured against 50 digits at 6,000
// random (k, n, level): at most 6u at level 1/2 (bound 99u), 30u at 0.001 (220u), 148u at 1e-12
// (690u), and never more than 0.24 of the bound.
#pragma once

#include <cmath>

#include "elementary.h"
#include "half_line_rule.h"

namespace drf_fast {

// Bound on the error of TailPoint::y.
DRF_HD inline double tail_log_error(double deviance, double log_level) {
  return kUnit * (96.0 + 19.0 * deviance + 4.0 * std::fabs(log_level));
}

// log(k!) - log(sqrt(2 pi k) (k/e)^k) for an integer k >= 0 (0 stands for the unused k = 0). The
// first term left out of the series is below 2e-18 at k = 16.
DRF_HD inline double stirling_error(double k) {
  static constexpr double kSmall[16] = {
      0.0,
      0.0810614667953272582,
      0.0413406959554092941,
      0.0276779256849983391,
      0.0207906721037650931,
      0.0166446911898211922,
      0.0138761288230707480,
      0.0118967099458917701,
      0.0104112652619720965,
      0.00925546218271273292,
      0.00833056343336287126,
      0.00757367548795184079,
      0.00694284010720952987,
      0.00640899418800420707,
      0.00595137011275884774,
      0.00555473355196280137,
  };
  if (k < 16.0) return kSmall[static_cast<int>(k)];
  const double r = 1.0 / k;
  const double z = r * r;
  double sum = -691.0 / 360360.0;
  sum = sum * z + 1.0 / 1188.0;
  sum = sum * z - 1.0 / 1680.0;
  sum = sum * z + 1.0 / 1260.0;
  sum = sum * z - 1.0 / 360.0;
  sum = sum * z + 1.0 / 12.0;
  return sum * r;
}

// A success probability held so that p, q = 1 - p and s = k/n - p all keep their digits: the
// smaller of p and s is the number that is given, the other one follows from it.
struct Split {
  double p, q, s;
};

DRF_HD inline Split split_by_p(double p, double k, double m, double n) {
  const double s = k / n - p;
  return {p, m / n + s, s};
}

DRF_HD inline Split split_by_s(double s, double k, double m, double n) {
  return {k / n - s, m / n + s, s};
}

// The integrand G. kNear promises f <= 1/2 and f p/q <= 1: no branch, so loops vectorise.
template <bool kNear>
struct TailIntegrand {
  double slope, k_less_1, m, odds;  // slope: -d log G / df at 0; odds: p/q

  DRF_HD double operator()(double f) const {
    const double fall = kNear ? x_minus_log1p_near_0(-f) : x_minus_log1p(-f);
    const double rise = kNear ? x_minus_log1p_near_0(f * odds) : x_minus_log1p(f * odds);
    return exp_(-(slope * f + (k_less_1 * fall + m * rise)));
  }
};

struct TailPoint {
  double y;     // log(T / level)
  double unit;  // W = d log p / d log T: the relative change of p that changes T by the factor e
  double deviance;                 // D
  double slope, bend, bend_slope;  // -d log G / df and its two derivatives at 0, in units of W
};

// `stirling` is e(n) - e(k) - e(m).
DRF_HD inline TailPoint binomial_tail(double k, double m, double n, const Split& at,
                                      double stirling, double log_level) {
  const double odds = at.p / at.q;
  const double slope = (n * at.s - at.q) / at.q;  // = k - 1 - m p/q without its cancellation
  const double bend = (k - 1.0) + m * odds * odds;

  // Where G has fallen to e^-37. Since a(x) >= x^2 / (2 + 4x/3) for x >= 0 (a Pade approximant) and
  // a(-x) >= x^2/2, -log G(f) >= slope f + (bend/2) f^2 / (1 + c f), c = 2/3 p/q: a quadratic.
  const double c = 2.0 / 3.0 * odds;
  const double square = slope * c + 0.5 * bend;
  const double half_linear = 0.5 * (kTailExponent * c - slope);
  const double root = std::sqrt(half_linear * half_linear + square * kTailExponent);
  // The two forms of the larger root; each adds where the other one would cancel.
  double length =
      half_linear > 0.0 ? (half_linear + root) / square : kTailExponent / (root - half_linear);
  if (!(square > 0.0) || length > 1.0) length = 1.0;

  const bool near = length <= 0.5 && length * odds <= 1.0;
  const double unit =
      near ? integrate_half_line(length, TailIntegrand<true>{slope, k - 1.0, m, odds})
           : integrate_half_line(length, TailIntegrand<false>{slope, k - 1.0, m, odds});

  // a(-s/phat) through log(p/phat) where p is the smaller part, the number that is given.
  const double ratio = at.p * n / k;
  const double x = at.s * n / k;
  const double shortfall = ratio < 0.5 ? -log_(ratio) - x : x_minus_log1p(-x);
  const double deviance = k * shortfall + m * x_minus_log1p(at.s * n / m);
  const double size = unit * std::sqrt(n * k / (6.283185307179586 * m));
  return {(log_(size) + stirling) - deviance - log_level,
          unit,
          deviance,
          slope * unit,
          bend * unit * unit,
          2.0 * ((k - 1.0) - m * odds * odds * odds) * unit * unit * unit};
}

}  // namespace drf_fast
