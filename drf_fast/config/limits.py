"""Limits of what certificates are computed from; nothing here imports torch."""

MOST_TRIALS = 2**53  # integers are exact in float64 up to here
LEAST_ALPHA = 1e-300  # float64 can halve it and take its logarithm
