"""Calls of the compiled cores: the only code that passes addresses, streams and threads to them."""
