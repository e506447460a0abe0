"""``drf-fast``: the command line, one file a command."""
