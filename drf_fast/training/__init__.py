"""The training loop and what it is made of: the run in memory, schedules, one step, methods."""
