"""Normal quantiles in float64, from the upper tail."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def upper_normal_quantile(q):
    """The x with P(N(0, 1) > x) = q, float64, for q in (0, 1/2], subnormal numbers included.

    With w = sqrt(1 - log(2 q)) - 1, which is 0 at q = 1/2 and at most 26.3, x / w is smooth over
    the whole range: one rational function, fitted here, approximates it to 1.8e-14. All
    coefficients are positive, so nothing cancels.
    """
    s = tl.maximum(-tl.log(q) - 0.6931471805599453, 0.0)
    w = s / (1.0 + tl.sqrt(1.0 + s))
    above = w * 0.0000186002395090339369 + 0.00219363229812126949
    above = above * w + 0.07367941054562902
    above = above * w + 1.01168962829086732
    above = above * w + 6.77561303680165889
    above = above * w + 24.6747028323716317
    above = above * w + 51.9137837871734571
    above = above * w + 64.2164961514190526
    above = above * w + 45.4716479132786915
    above = above * w + 16.8437063631438573
    above = above * w + 2.50662827463095563
    below = w * 0.0000131523089379661886 + 0.00153800831872759284
    below = below * w + 0.0506087141401575937
    below = below * w + 0.669037535246980488
    below = below * w + 4.23431894035666956
    below = below * w + 14.3886657803096831
    below = below * w + 28.086637236588618
    below = below * w + 32.1372093890924344
    below = below * w + 21.0365320083840859
    below = below * w + 7.21966662691615507
    below = below * w + 1.0
    return w * above / below


@triton.jit
def inverse_density(x):
    """1 over the density of N(0, 1) at x, float64."""
    return 2.5066282746310005 * tl.exp(0.5 * x * x)
