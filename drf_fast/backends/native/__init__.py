"""The compiled cores: the only place with addresses, streams and thread counts."""
