"""Calls of the compiled cores: the only code with addresses, streams and thread counts."""
