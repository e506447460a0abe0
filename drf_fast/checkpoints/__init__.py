"""Checkpoints, ours and those of other repositories, read without running their code."""
