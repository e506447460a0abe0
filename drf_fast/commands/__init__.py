"""``drf-fast``: the command line, one file per command."""
