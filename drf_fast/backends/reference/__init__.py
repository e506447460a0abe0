"""The truth: every operation in plain torch and NumPy, float64 where it is asked for."""
