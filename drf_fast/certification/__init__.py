"""CERTIFY and PREDICT: votes under noise, when they suffice, what they prove, and the log."""
