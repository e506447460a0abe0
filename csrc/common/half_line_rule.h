// One quadrature rule for every tail integral of this project.
//
// Integrates G over [0, length], where G(0) = 1, G is log-concave and G(length) <= e^-37 (or G
// ends there): Gauss-Legendre with 28 nodes. Beyond e^-37 log-concavity leaves less than
// e^-37 = 8.5e-17 of the integral. For a half normal the rule's own error is 1e-18, for the
// exponential (one end of the family) 1e-19, and the largest found over 4,000 binomial tails with n
// from 2 to 1e6 and tail probabilities from 1e-300 to 1/2 is 4e-17, 26 nodes giving 9e-16. Nodes
// and weights are rounded to double: at most u each, and all terms are positive. Together: below
// 4u.
#pragma once

#include "portable.h"

namespace drf_fast {

constexpr double kTailExponent = 37.0;
constexpr int kNodes = 28;

template <class Integrand>
DRF_HD inline double integrate_half_line(double length, const Integrand& integrand) {
  static constexpr double kPlace[kNodes] = {
      0.00177875121302277502, 0.00934841731456362315, 0.0228703596855309014, 0.0421834868039339631,
      0.0670537387128024755,  0.0971793145414104143,  0.132194560993184114,  0.171674452980567519,
      0.21513976409429914,    0.262062887522440869,   0.311874241955460645,  0.363969186182410961,
      0.417715358933309614,   0.472460355057982865,   0.527539644942017135,  0.582284641066690386,
      0.636030813817589039,   0.688125758044539355,   0.737937112477559131,  0.78486023590570086,
      0.828325547019432481,   0.867805439006815886,   0.902820685458589586,  0.932946261287197524,
      0.957816513196066037,   0.977129640314469099,   0.990651582685436377,  0.998221248786977225};
  static constexpr double kWeight[kNodes] = {
      0.00456214129654725887, 0.0105660562963856299, 0.01645071389115219,   0.0221364673795021139,
      0.0275536728378583727,  0.0326364619834997979, 0.0373231071172843895, 0.0415567086144506092,
      0.0452858721965164205,  0.0484653289989649579, 0.0510564837890303849, 0.053027882961423209,
      0.0543555961291470676,  0.0550235065082375981, 0.0550235065082375981, 0.0543555961291470676,
      0.053027882961423209,   0.0510564837890303849, 0.0484653289989649579, 0.0452858721965164205,
      0.0415567086144506092,  0.0373231071172843895, 0.0326364619834997979, 0.0275536728378583727,
      0.0221364673795021139,  0.01645071389115219,   0.0105660562963856299, 0.00456214129654725887};
  double sum = 0.0;
#if DRF_DEVICE_CODE
  // The same sum in the same order, so the same bits; an array would go to local memory here.
  for (int i = kNodes - 1; i >= 0; --i) sum += kWeight[i] * integrand(length * kPlace[i]);
#else
  double value[kNodes];
  for (int i = 0; i < kNodes; ++i) value[i] = integrand(length * kPlace[i]);
  // A second loop, in this order, leaves the first one free of the reduction, to be vectorised.
  for (int i = kNodes - 1; i >= 0; --i) sum += kWeight[i] * value[i];
#endif
  return length * sum;
}

}  // namespace drf_fast
