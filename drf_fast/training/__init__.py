"""What ``train.py`` is made of: the run in memory, its schedules, one step, the checkpoint."""
